"""Preemption: a worker looks whether its node is about to be taken away, so that the job can save in time,
and goes on elsewhere if there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable

import ray
from ray._private.state import state

ASK_EVERY_S = 1.0


def draining_nodes() -> set[str]:
    """The ids of the cluster's nodes that are about to be taken away; none where nobody answers."""
    try:
        return set(state.get_draining_nodes())
    except Exception:  # noqa: BLE001 - a cluster that does not answer drains nobody
        return set()


class PreemptionWatch(threading.Thread):
    """Asks the cluster, in a thread of its own, whether this node is being drained, and tells so once."""

    def __init__(self, tell: Callable[[], object]) -> None:
        super().__init__(name="drain-watch", daemon=True)
        self._tell = tell
        self._node = ray.get_runtime_context().get_node_id()
        self._draining = threading.Event()

    @property
    def draining(self) -> bool:
        """Whether it is; once true, always true."""
        return self._draining.is_set()

    def run(self) -> None:
        """Until the node is drained or the process ends."""
        pause = threading.Event()
        while not self.draining:
            try:
                if self._node in state.get_draining_nodes():
                    self._draining.set()
                    self._tell()
            except Exception:  # noqa: BLE001 - a cluster that does not answer drains nobody
                pause.wait(10 * ASK_EVERY_S)
            pause.wait(ASK_EVERY_S)
