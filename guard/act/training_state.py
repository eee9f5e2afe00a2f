"""The rungs of the ladder, carried out: apply or clip, skip exactly, roll back and calm down."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.act.buffers import BufferShield
from guard.act.cooldown import Cooldown
from guard.act.fused import FusedStep
from guard.act.scaler import ScalerAdapter
from guard.act.snapshot import GENERATORS, Snapshot, SnapshotRing, Stateful, Subject
from guard.config import GuardConfig
from guard.observe.displacement import Displacement
from guard.observe.observer import Observer
from guard.types import Movement, Source, StepOutcome

DATA = "data"
EMA = "ema"


Restore = Callable[[int], int | None]


class TrainingState:
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
        self.recovery = Cooldown(config.recovery, observer.parameters)
        self.restore: Restore | None = None
        self._ema = states.get(EMA)
        self._ema_kept: dict[str, Any] | None = None
        self._active = config.acts
        watches = config.mode != "off"
        self.fused = FusedStep(optimizer, scaled=scaler is not None and scaler.is_enabled())
        self.shield = BufferShield(model) if watches else None
        self._moved: Displacement | None = None
        if watches and config.update_norm != "off":
            every = 1 if config.update_norm == "always" else config.update_norm
            self._moved = Displacement(observer.parameters, optimizer, every)
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

    def state_dict(self) -> dict[str, Any]:
        """What the signals remember, and the recovery under way."""
        return {
            "recovery": self.recovery.state_dict(),
            "buffers": None if self.shield is None else self.shield.state_dict(),
            "moved": None if self._moved is None else self._moved.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Continues from ``state_dict`` after ``step`` steps: what is loaded by now is the first snapshot."""
        self.recovery.load_state_dict(state["recovery"])
        self.start(step)
        if self.shield is not None and state["buffers"] is not None:
            self.shield.load_state_dict(state["buffers"])
        if self._moved is not None and state["moved"] is not None:
            self._moved.load_state_dict(state["moved"])

    def can_roll_back(self) -> bool:
        """Whether a healthy snapshot exists (in shadow mode, where none are taken: as if one did)."""
        return not self._active or self._ring.has_healthy()

    def start(self, step: int) -> None:
        """The present state is known to be good: accept it, and take the first snapshot of it."""
        self._accept_state(step)
        if self._active:
            self._ring.reset()
            self._ring.take(step, healthy=True)
            self._start_version = self._subject.version()

    def refresh(self) -> None:
        """Before the first step: weights may have been loaded after ``start``, then they are what it saved.

        The data position and the random number generators stay as they were, since the first batch has
        been drawn by now.
        """
        if self._active and self._subject.version() != self._start_version:
            self._accept_state(self._ring.newest_step)
            self._ring.retake(leave=frozenset({DATA, GENERATORS}))
            self._start_version = self._subject.version()

    def moved(self, step: int) -> Movement | None:
        """How the weights have moved, on the steps on which that is measured.

        Always right after a snapshot: what the snapshot holds is then judged before it can be called healthy.
        """
        if self._moved is None or not (self._moved.due(step) or self._ring.is_fresh(step)):
            return None
        return self._moved.measure(step)

    def distances(self, step: int) -> NDArray[np.float64] | None:
        """How far each parameter has moved since it was looked at last; None where that is not watched."""
        return None if self._moved is None else self._moved.distances(step)

    def apply(self, step: int, clip: Callable[[], float | None]) -> StepOutcome:
        """Clips the gradients, steps the optimizer, advances the schedule.

        Args:
            step: optimizer steps before this one.
            clip: changes the gradients; the ratio of their norm after and before, None if it left them alone.
        """
        ratio = clip()
        self._ring.before_step()
        started = time.perf_counter()
        with self.fused.armed():
            self._scaler.step(lambda: self.recovery.applied_to(self._optimizer))
        elapsed = time.perf_counter() - started
        self.advance()
        self.accept_buffers()
        if ratio is None:
            return StepOutcome("applied", step + 1, optimizer_seconds=elapsed)
        return StepOutcome("clipped", step + 1, optimizer_seconds=elapsed, clip_coef=ratio)

    def advance(self) -> None:
        """The learning rate schedule moves on: once for each applied step."""
        if self._moved is not None:
            self._moved.stepped(self.learning_rate)
        if self._scheduler is not None:
            self._scheduler.step()  # type: ignore[attr-defined]

    def settle(self, step: int, *, clean: bool) -> None:
        """After an applied step: count it toward the health of the snapshots, and take one when due."""
        self.judge_snapshots(step, clean=clean)
        if clean:
            self.take_snapshot_when_due(step)

    def judge_snapshots(self, step: int, *, clean: bool) -> None:
        """The step that led to ``step`` was clean, or it was not: candidates gain or lose by it."""
        if self._active and clean:
            self._ring.clean_step(step)
        elif self._active:
            self._ring.doubt()

    def take_snapshot_when_due(self, step: int) -> None:
        """A candidate of the present state."""
        if self._active and self._ring.due(step):
            self._ring.take(step)

    def take_snapshot(self, step: int) -> None:
        """A candidate of the present state, out of turn."""
        if self._active and self._ring.is_new(step):
            self._ring.take(step)

    def skip(self, step: int) -> StepOutcome:
        """Leaves everything as it was before this batch: weights, moments, counters, buffers, loss scale."""
        self.undo_forward()
        self._ring.doubt()
        if self._ema is not None:
            self._ema_kept = copy.deepcopy(self._ema.state_dict())
        return StepOutcome("skipped", step)

    def undo_forward(self) -> None:
        """Forgets what forward and backward left behind: gradients, buffers, the scaler's note of them."""
        self._scaler.forget()
        self._observer.drop_gradients()
        self.revert_buffers()

    def revert_buffers(self) -> None:
        """Forgets what forward made of the buffers."""
        if self.shield is not None and self._active:
            self.shield.revert()

    def overflow(self, step: int) -> StepOutcome:
        """An overflow that the loss scaler handles: it does not step, and lowers its scale."""
        self._scaler.step()
        self.revert_buffers()
        return StepOutcome("skipped", step)

    def roll_back(self, step: int) -> StepOutcome:
        """Returns to the newest healthy snapshot, or where that did not help to disk; starts the recovery."""
        started = time.perf_counter()
        source: Source = "memory"
        spent = self._ring.spent()
        target = None if spent is None else self._from_disk(spent.step - 1)
        if target is not None:
            source = "disk"
        else:
            target = self.rewind().step
        self.recovery.begin()
        seconds = time.perf_counter() - started
        return StepOutcome("rolled_back", target, target, max(0, step - target), seconds, source=source)

    def _from_disk(self, before: int) -> int | None:
        """Loads an older state in place of all snapshots; None where there is none. Collective."""
        if self.restore is None or (step := self.restore(before)) is None:
            return None
        self._scaler.forget()
        self._observer.drop_gradients()
        self._ema_kept = None
        self.start(step)
        return step

    def halt(self, step: int) -> StepOutcome:
        """Leaves the newest healthy state behind, without recovery; where there is none, that of before."""
        if not self.can_roll_back():
            return self.skip(step)
        target = self.rewind()
        return StepOutcome("rolled_back", target.step, target.step, step - target.step)

    def launch(self, skip: Tensor) -> None:
        """Steps the optimizer unless ``skip`` (0-dim float32, on the device) is 1, as ``fused`` was told."""
        self._ring.before_step()
        with self.fused.armed():
            self._optimizer.step()
        if self.shield is not None:
            self.shield.accept_unless(skip)

    def before_backward(self) -> None:
        """What happened to the averaged weights since a skip is undone: they must not learn from it twice."""
        if self._ema_kept is not None and self._ema is not None:
            self._ema.load_state_dict(self._ema_kept)
            self._ema_kept = None

    def rewind(self) -> Snapshot:
        """Returns to the newest healthy snapshot, without recovery."""
        self._scaler.forget()
        self._observer.drop_gradients()
        self._ema_kept = None
        target = self._ring.target()
        if target is None:
            raise RuntimeError("rewind was called without a healthy snapshot")
        self._ring.restore(target, leave=frozenset() if self._replay else frozenset({DATA}))
        self._accept_state(target.step)
        return target

    def _accept_state(self, step: int) -> None:
        self.accept_buffers()
        if self._moved is not None:
            self._moved.start(step)

    def accept_buffers(self) -> None:
        """What the buffers hold now is good."""
        if self.shield is not None:
            self.shield.accept()
