"""The rungs of the ladder, carried out: apply or clip, skip exactly, roll back and calm down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from guard.buffers import BufferShield
from guard.config import GuardConfig
from guard.observe import Observer
from guard.recover import Recovery
from guard.report import Action
from guard.scaler import ScalerAdapter
from guard.snapshot import GENERATORS, Snapshot, SnapshotRing, Stateful, Subject

DATA = "data"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done: the action, where it led, what it cost beyond the optimizer's own step."""

    action: Action
    step: int
    rolled_back_to: int | None = None
    steps_lost: int = 0
    seconds: float = 0.0
    optimizer_seconds: float = 0.0
    clip_coef: float = 1.0


class Actor:
    """Owns everything that a step may change: weights, optimizer, buffers, schedule, snapshots."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        config: GuardConfig,
        *,
        observer: Observer,
        scheduler: Stateful | None,
        scaler: torch.amp.GradScaler | None,
        states: Mapping[str, Stateful],
    ) -> None:
        self._optimizer = optimizer
        self._observer = observer
        self._scheduler = scheduler
        self._scaler = ScalerAdapter(scaler, optimizer)
        self._replay = config.recovery.data == "replay"
        self.recovery = Recovery(config.recovery, observer.parameters)
        self._active = config.mode == "exact"
        self._shield = BufferShield(model) if self._active else None
        rewound = {"guard.scheduler": scheduler, "guard.scaler": scaler, **states}
        self._subject = Subject(model, optimizer, {k: s for k, s in rewound.items() if s is not None})
        self._ring = SnapshotRing(config.snapshot, self._subject)
        self._start_version = self._subject.version()

    @property
    def scaler(self) -> ScalerAdapter:
        """Loss scaling, if any."""
        return self._scaler

    @property
    def learning_rate(self) -> float:
        """The rate of the first parameter group that the next step would use."""
        return float(self._optimizer.param_groups[0]["lr"]) * self.recovery.strengths()["lr_scale"]

    def can_roll_back(self) -> bool:
        """Whether a healthy snapshot exists (in shadow mode, where none are taken: as if one did)."""
        return not self._active or self._ring.has_healthy()

    def start(self, step: int) -> None:
        """The present state is known to be good: accept it, and take the first snapshot of it."""
        if self._active:
            self._accept_buffers()
            self._ring.reset()
            self._ring.take(step, healthy=True)
            self._start_version = self._subject.version()

    def refresh(self) -> None:
        """Before the first step: weights may have been loaded after ``start``, then they are what it saved.

        The data position and the random number generators stay as they were, since the first batch has
        been drawn by now.
        """
        if self._active and self._subject.version() != self._start_version:
            self._accept_buffers()
            self._ring.retake(leave=frozenset({DATA, GENERATORS}))
            self._start_version = self._subject.version()

    def apply(self, step: int, clip: Callable[[], float | None]) -> Outcome:
        """Clips the gradients, steps the optimizer, advances the schedule.

        Args:
            step: optimizer steps before this one.
            clip: changes the gradients; the ratio of their norm after and before, None if it left them alone.
        """
        ratio = clip()
        started = time.perf_counter()
        self._scaler.step(lambda: self.recovery.applied_to(self._optimizer))
        elapsed = time.perf_counter() - started
        if self._scheduler is not None:
            self._scheduler.step()  # type: ignore[attr-defined]
        self._accept_buffers()
        if ratio is None:
            return Outcome("applied", step + 1, optimizer_seconds=elapsed)
        return Outcome("clipped", step + 1, optimizer_seconds=elapsed, clip_coef=ratio)

    def settle(self, step: int, *, clean: bool) -> None:
        """After an applied step: count it toward the health of the snapshots, and take one when due."""
        if not self._active:
            return
        if not clean:
            self._ring.doubt()
            return
        self._ring.clean_step()
        if self._ring.due(step):
            self._ring.take(step)

    def skip(self, step: int) -> Outcome:
        """Leaves everything as it was before this batch: weights, moments, counters, buffers, loss scale."""
        self._scaler.forget()
        self._observer.drop_gradients()
        if self._shield is not None:
            self._shield.revert()
        self._ring.doubt()
        return Outcome("skipped", step)

    def overflow(self, step: int) -> Outcome:
        """An overflow that the loss scaler handles: it does not step, and lowers its scale."""
        self._scaler.step()
        if self._shield is not None:
            self._shield.revert()
        return Outcome("skipped", step)

    def roll_back(self, step: int) -> Outcome:
        """Returns to the newest healthy snapshot and starts the recovery."""
        started = time.perf_counter()
        target = self.rewind()
        self.recovery.begin()
        seconds = time.perf_counter() - started
        return Outcome("rolled_back", target.step, target.step, step - target.step, seconds)

    def rewind(self) -> Snapshot:
        """Returns to the newest healthy snapshot, without recovery."""
        self._scaler.forget()
        self._observer.drop_gradients()
        target = self._ring.target()
        if target is None:
            raise RuntimeError("rewind was called without a healthy snapshot")
        self._ring.restore(target, leave=frozenset() if self._replay else frozenset({DATA}))
        self._accept_buffers()
        return target

    def _accept_buffers(self) -> None:
        if self._shield is not None:
            self._shield.accept()
