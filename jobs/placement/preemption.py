"""Preemption: each worker checks whether its node is about to be removed, so that the job saves in time and
moves if another node has room."""

from __future__ import annotations

import threading
from collections.abc import Callable

import ray

from jobs.ray_internals import core

CHECK_EVERY_S = 1.0


def draining_nodes() -> set[str]:
    """The ids of the cluster's nodes that are about to be removed; none where the cluster does not answer."""
    try:
        return core.draining_nodes()
    except Exception:  # noqa: BLE001 - a cluster that does not answer preempts no node
        return set()


class PreemptionWatch(threading.Thread):
    """Checks in a thread whether this node is being preempted; calls ``notify`` once when it is."""

    def __init__(self, notify: Callable[[], object]) -> None:
        super().__init__(name="preemption-watch", daemon=True)
        self._notify = notify
        self._node = ray.get_runtime_context().get_node_id()
        self._preempted = threading.Event()

    @property
    def preempted(self) -> bool:
        """Whether this node is being preempted; once true, always true."""
        return self._preempted.is_set()

    def run(self) -> None:
        """Until the node is preempted or the process ends."""
        pause = threading.Event()
        while not self.preempted:
            try:
                if self._node in core.draining_nodes():
                    self._preempted.set()
                    self._notify()
            except Exception:  # noqa: BLE001 - a cluster that does not answer preempts no node
                pause.wait(10 * CHECK_EVERY_S)
            pause.wait(CHECK_EVERY_S)
