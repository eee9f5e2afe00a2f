"""Watches the head of the cluster: without it Ray waits for a minute and then aborts the process.

One that died is noticed within seconds, one that is frozen after ``SILENT_S``; one of its processes that is
stopped after ``STOPPED_S``, before Ray takes the node for dead and its own calls hang.
"""

from __future__ import annotations

import socket
import time

from jobs.cluster.session import ClusterInfo
from jobs.ray_internals.core import alive_at_head, dead_head_processes, kill_head, stopped_head_processes

CHECK_EVERY_S = 5.0
CONNECT_TIMEOUT_S = 2.0
FAILED_CHECKS = 3
"""Consecutive checks that must fail before the head of another machine counts as dead."""
SILENT_S = 60.0
"""After that a head counts as dead whose processes are there and do not answer."""
STOPPED_S = 30.0
"""After that a head counts as dead of which a process is stopped; the training itself may go on meanwhile."""
VITAL = {"raylet", "gcs_server"}


class HeadDied(RuntimeError):
    """The cluster's head is gone; the text names what died."""


class HeadWatch:
    """Detects that the head has died: by its processes if this process started them, else by its address; and
    that it does not answer, because it is frozen.
    """

    def __init__(self, cluster: ClusterInfo) -> None:
        self._embedded, self._address = cluster.embedded, cluster.address
        self._next = time.monotonic() + CHECK_EVERY_S
        self._failures = 0
        self._answered = self._all_ran = time.monotonic()

    def check(self) -> None:
        """Checks, without waiting long.

        Raises:
            HeadDied: it is gone.
        """
        if self._embedded and (dead := VITAL.intersection(dead_head_processes())):
            raise HeadDied(f"Ray's {' and '.join(sorted(dead))} died")
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + CHECK_EVERY_S
            if not self._embedded:
                self._check_address()
            self._check_stopped()
            self._check_answer()

    def _check_stopped(self) -> None:
        stopped = VITAL.intersection(stopped_head_processes())
        if not stopped:
            self._all_ran = time.monotonic()
        elif time.monotonic() - self._all_ran > STOPPED_S:
            kill_head()  # it would hold up the end of the session for ever
            names = " and ".join(sorted(stopped))
            raise HeadDied(f"Ray's {names} has been stopped for {STOPPED_S:g} s")

    def _check_answer(self) -> None:
        alive = alive_at_head(CONNECT_TIMEOUT_S)
        if alive:
            self._answered = time.monotonic()
        elif alive is False or time.monotonic() - self._answered > SILENT_S:
            if self._embedded:
                kill_head()  # frozen, it would hold up the end of the session for ever
            silent = f"head has not answered for {SILENT_S:g} s"
            raise HeadDied(f"Ray's {'raylet does not answer' if alive is False else silent}")

    def _check_address(self) -> None:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
            self._failures = 0
        except OSError as error:
            self._failures += 1
            if self._failures >= FAILED_CHECKS:
                raise HeadDied(f"the head of the Ray cluster at {self._address} is gone ({error})") from None
