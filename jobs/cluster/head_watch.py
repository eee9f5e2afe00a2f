"""The head of the cluster, watched by the driver: without it Ray waits for a minute and then aborts."""

from __future__ import annotations

import socket
import time

from ray._private import worker

from jobs.cluster.session import ClusterInfo

CHECK_EVERY_S = 5.0
CONNECT_TIMEOUT_S = 2.0
REFUSALS = 3
"""Checks in a row that must fail before the head of another machine counts as dead."""


class HeadDied(RuntimeError):
    """The cluster's head is gone; the text says what of it."""


class HeadWatch:
    """Says when the head has died: by its processes where they are ours, else by its address."""

    def __init__(self, cluster: ClusterInfo) -> None:
        self._embedded, self._address = cluster.embedded, cluster.address
        self._next = time.monotonic() + CHECK_EVERY_S
        self._refusals = 0

    def check(self) -> None:
        """Looks, without waiting long.

        Raises:
            HeadDied: it is gone.
        """
        if self._embedded:
            self._check_processes()
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + CHECK_EVERY_S
            self._check_address()

    def _check_processes(self) -> None:
        node = worker._global_node
        dead = [kind for kind, _ in node.dead_processes()] if node is not None else []
        vital = sorted({"raylet", "gcs_server"}.intersection(dead))
        if vital:
            raise HeadDied(f"Ray's {' and '.join(vital)} died")

    def _check_address(self) -> None:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
            self._refusals = 0
        except OSError as error:
            self._refusals += 1
            if self._refusals >= REFUSALS:
                raise HeadDied(f"the head of the Ray cluster at {self._address} is gone ({error})") from None
