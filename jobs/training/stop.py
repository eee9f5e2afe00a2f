"""Whether this rank's job must stop: requested through the hub, or because its node is preempted."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.actor import ActorHandle

from jobs.placement.preemption import PreemptionWatch

ASK_EVERY_S = 0.5


class StopWatcher:
    """Answers on any rank, without waiting, whether the job must stop."""

    def __init__(self, hub: ActorHandle, job: str, rank: int) -> None:
        self._hub, self._job = hub, job
        self._reply: Any = None
        self._next = 0.0
        self.asked = False
        """The hub's last answer, as far as this rank knows."""
        text = f"the node of rank {rank} is about to be preempted: saving the state"
        self._preemption = PreemptionWatch(lambda: hub.emit_event.remote(job, "warning", text))
        self._preemption.start()

    @property
    def preempted(self) -> bool:
        """Whether this rank's node is about to be preempted."""
        return self._preemption.preempted

    def requested(self) -> bool:
        """Whether the node is preempted or the hub has answered that it must; asks it every half second."""
        try:
            return self.preempted or self._answered()
        except Exception:  # noqa: BLE001 - a hub that does not answer must never end a training
            self._reply = None
            return False

    def _answered(self) -> bool:
        if self._reply is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + ASK_EVERY_S
            self._reply = self._hub.stop_requested.remote(self._job)
        if self._reply is None or not ray.wait([self._reply], timeout=0)[0]:
            return False
        reply, self._reply = self._reply, None
        self.asked = bool(ray.get(reply, timeout=0))
        return self.asked
