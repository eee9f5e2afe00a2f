"""Watches the head of the cluster: without it Ray waits for a minute and then aborts the process."""

from __future__ import annotations

import socket
import time

from jobs.cluster.session import ClusterInfo
from jobs.ray_internals.core import dead_head_processes

CHECK_EVERY_S = 5.0
CONNECT_TIMEOUT_S = 2.0
FAILED_CHECKS = 3
"""Consecutive checks that must fail before the head of another machine counts as dead."""
VITAL = {"raylet", "gcs_server"}


class HeadDied(RuntimeError):
    """The cluster's head is gone; the text names what died."""


class HeadWatch:
    """Detects that the head has died: by its processes if this process started them, else by its address."""

    def __init__(self, cluster: ClusterInfo) -> None:
        self._embedded, self._address = cluster.embedded, cluster.address
        self._next = time.monotonic() + CHECK_EVERY_S
        self._failures = 0

    def check(self) -> None:
        """Checks, without waiting long.

        Raises:
            HeadDied: it is gone.
        """
        if self._embedded:
            if dead := VITAL.intersection(dead_head_processes()):
                raise HeadDied(f"Ray's {' and '.join(sorted(dead))} died")
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + CHECK_EVERY_S
            self._check_address()

    def _check_address(self) -> None:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
            self._failures = 0
        except OSError as error:
            self._failures += 1
            if self._failures >= FAILED_CHECKS:
                raise HeadDied(f"the head of the Ray cluster at {self._address} is gone ({error})") from None
