"""The rungs of the ladder, carried out: apply or clip, skip exactly, roll back and start the cooldown."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.act.buffers import BufferShield
from guard.act.cooldown import Cooldown
from guard.act.fused import FusedStep
from guard.act.loop_checks import LoopChecks, ScheduleCheck, check_closure
from guard.act.moments import kept_moments
from guard.act.outside import OutsideChanges
from guard.act.rates import UsedRate
from guard.act.rollback import DATA, Rollback
from guard.act.scaler import ScalerAdapter
from guard.act.snapshot import GENERATORS, SnapshotRing, Stateful, Subject
from guard.config import GuardConfig
from guard.observe.displacement import Displacement, Moving
from guard.observe.observer import Observer
from guard.types import Floats, Movement, StepOutcome, Travelled

EMA = "ema"
"""What the averaged weights are called in a snapshot."""


class TrainingState:
    """Owns everything that a step may change: weights, optimizer, buffers, schedule, snapshots.

    Args:
        states: what else a rollback restores, by name; for ``data`` and ``ema`` see ``GradientGuard``.
    """

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
        data: Stateful | None,
        ema: Stateful | None,
    ) -> None:
        self._optimizer = optimizer
        self._observer = observer
        self._scheduler = scheduler
        self.rate = UsedRate(optimizer)
        self.scaler = ScalerAdapter(scaler, optimizer)
        self.checks = LoopChecks(optimizer, observer.parameters, scaler, active=config.mode != "off")
        others = {k: s for k, s in states.items() if not k.startswith("guard.")}
        self._schedule = ScheduleCheck(scheduler, optimizer, others)
        self.cooldown = Cooldown(config.recovery, observer.parameters)
        # Deferred reports come one step late: what an average learns at a skip is of the step before.
        self._ema = ema if config.mode == "exact" else None
        self._ema_before_skip: dict[str, Any] | None = None
        self._active = config.acts
        watches = config.mode != "off"
        self.fused = FusedStep(optimizer, scaled=scaler is not None and scaler.is_enabled())
        self.shield = BufferShield(model, config.watch_buffers) if watches else None
        self.only_statistics = self.shield is not None and self.shield.only_statistics
        """Whether no buffer is watched but running statistics."""
        self.displacement: Displacement | None = None
        if watches and config.update_norm != "off":
            every = 1 if config.update_norm == "always" else config.update_norm
            self.displacement = Displacement(observer.parameters, optimizer, every, observer.shards)
        named = {"guard.scheduler": scheduler, "guard.scaler": scaler, **states, DATA: data, EMA: ema}
        present = {k: s for k, s in named.items() if s is not None}
        self._subject = Subject(model, optimizer, present, observer.parameters)
        self._ring = SnapshotRing(config.snapshot, self._subject)
        self.oldest_step, self.keep_oldest = self._ring.oldest_step, self._ring.keep_oldest
        self._rollback = Rollback(
            self._ring,
            self.cooldown,
            replay=config.recovery.data == "replay",
            before=self._clear_gradients,
            after=self._accept_state,
            start=self.start,
        )
        self.roll_back, self.restore_from = self._rollback.run, self._rollback.restore_from
        self._start_version = self._subject.version()
        self.outside = OutsideChanges(observer.parameters, self._subject.unheld)
        self.attention_logit: float | None = None
        """The largest of the present attempt; None where it is not measured."""

    @property
    def learning_rate(self) -> float:
        """The rate of the first parameter group that the next step would use."""
        return self.rate.declared * self.cooldown.lr_scale

    def state_dict(self) -> dict[str, Any]:
        return {
            "recovery": self.cooldown.state_dict(),
            "buffers": None if self.shield is None else self.shield.state_dict(),
            "moved": self.displacement and self.displacement.state_dict(measures=self._ring.just_taken),
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Continues from ``state_dict`` after ``step`` steps: what is loaded by now is the first snapshot."""
        self.cooldown.load_state_dict(state["recovery"])
        self.start(step)
        if self.shield is not None and state["buffers"] is not None:
            self.shield.load_state_dict(state["buffers"])
        if self.displacement is not None and state["moved"] is not None:
            self.displacement.load_state_dict(state["moved"])

    def can_roll_back(self) -> bool:
        """Whether a healthy snapshot exists (in shadow mode, where none are taken: as if one did)."""
        return not self._active or self._ring.has_healthy()

    def start(self, step: int) -> None:
        """The present state is known to be good: accept it, and take the first snapshot of it."""
        self._begin(step)
        if self._active:
            self._ring.reset()
            self._ring.take(step, healthy=True)
            self._ring.reserve()
            self._start_version = self._subject.version()

    def joined(self, step: int) -> None:
        """The optimizer steps other weights than before; the observer has them already."""
        self._ring.joined()
        if self.shield is not None:
            self.shield.rescan()
        if self.displacement is not None:
            self.displacement.follow(self._observer.parameters, step, self._observer.shards)

    def refresh(self) -> None:
        """Before the first step: weights may have been loaded after ``start``; then the snapshot follows.

        The data position and the random number generators in it stay, since the first batch has been drawn.
        """
        if self._active and self._subject.version() != self._start_version:
            self._begin(self._ring.newest_step)
            self._ring.retake(keep=frozenset({DATA, GENERATORS}))
            self._start_version = self._subject.version()

    def movement(self, step: int) -> Movement | None:
        """How far the weights have moved, on the steps on which it is measured.

        Always right after a snapshot: what the snapshot holds is then judged before it can be called healthy.
        """
        moving = self.start_movement(step)
        return None if moving is None else self.read_movement(moving, moving.pieces.cpu().numpy())

    def start_movement(self, step: int) -> Moving | None:
        """The same, on the device, where ``read_movement`` will be called with it once it is on the host."""
        if self.displacement is None or not (self.displacement.due(step) or self._ring.is_fresh(step)):
            return None
        return self.displacement.launch(step)

    def read_movement(self, moving: Moving, pieces: Floats) -> Movement | None:
        """What ``start_movement`` measured."""
        return None if self.displacement is None else self.displacement.read(moving, pieces)

    def distances(self, step: int) -> Floats | None:
        """How far each parameter has moved since the last measurement; None where that is not watched."""
        return None if self.displacement is None else self.displacement.distances(step)

    def on_purpose(self, parameters: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Around a change that the guard itself makes to these weights: it is no movement."""
        return nullcontext() if self.displacement is None else self.displacement.on_purpose(parameters)

    def moved_far(self, step: int) -> bool:
        """Whether the weights have moved farther than steps explain; False where that is not watched."""
        return self.displacement is not None and self.displacement.moved_far(step)

    def travelled(self, step: int) -> Travelled | None:
        """How far the weights are from where they were measured last; None where that is not watched."""
        return None if self.displacement is None else self.displacement.travelled(step)

    def apply(self, step: int, clip: Callable[[], float | None], *, outlier: bool = False) -> StepOutcome:
        """Clips the gradients, steps the optimizer, advances the schedule.

        Args:
            step: optimizer steps before this one.
            clip: changes the gradients; returns the norm after over the norm before, None if unchanged.
            outlier: the moments of the optimizer do not learn from these gradients.
        """
        ratio = clip()
        self._ring.before_step()
        started = time.perf_counter()
        try:
            self._step_optimizer(outlier=outlier)
        except Exception as error:
            check_closure(self._optimizer, error)
            raise
        elapsed = time.perf_counter() - started
        self.advance()
        self._accept_buffers()
        return StepOutcome(
            "applied" if ratio is None else "clipped",
            step + 1,
            optimizer_seconds=elapsed,
            clip_coef=1.0 if ratio is None else ratio,
            learning_rate=self.rate.last,
        )

    def _step_optimizer(self, *, outlier: bool = False, later: bool = False) -> None:
        """The guard's own step of it; ``later`` as of ``UsedRate.expect_step``."""
        keys, self.checks.inside = self._subject.keys(), True
        self.rate.expect_step(later=later)
        try:
            with self.fused.armed(), self.cooldown.applied_to(self._optimizer):
                kept_moments(self._optimizer, self.scaler.step) if outlier else self.scaler.step()
        finally:
            self.checks.inside = self.rate.expects = False
        self.scaler.update()
        self._subject.note_keys(keys)

    def advance(self, rate: float | None = None) -> None:
        """Advances the learning rate schedule: once for each applied step, of this rate where it is known."""
        if self.displacement is not None:
            self.displacement.stepped(self.rate.overall(self.learning_rate if rate is None else rate))
        self._schedule.check()
        if self._scheduler is not None:
            self._scheduler.step()  # type: ignore[attr-defined]
            self._schedule.accept()

    def settle(self, step: int, *, clean: bool) -> None:
        """After an applied step: count it toward the health of the snapshots, and take one when due."""
        self.update_snapshot_health(step, clean=clean)
        if clean:
            self.take_snapshot_when_due(step)

    def update_snapshot_health(self, step: int, *, clean: bool) -> None:
        """A clean step to ``step`` counts for the candidates; any other drops them."""
        if self._active and clean:
            self._ring.clean_step(step)
        elif self._active:
            self._ring.drop_candidates()

    def complete_snapshot(self, step: int) -> None:
        """A snapshot taken while the step to ``step`` was in flight gets the schedule of after it."""
        if self._active:
            self._ring.complete(step)

    def take_snapshot_when_due(self, step: int) -> None:
        """Takes a candidate of the present state where ``every_steps`` asks for one."""
        if self._active:
            self._ring.reserve()
            if self._ring.due(step):
                self._ring.take(step)

    def take_snapshot(self, step: int) -> None:
        """Takes a candidate of the present state, out of turn."""
        if self._active and self._ring.is_new(step):
            self._ring.take(step)

    def skip(self, step: int) -> StepOutcome:
        """Leaves everything as it was before this batch: weights, moments, counters, buffers, loss scale."""
        self.undo_forward()
        self._ring.drop_candidates()
        if self._ema is not None:
            self._ema_before_skip = copy.deepcopy(self._ema.state_dict())
        return StepOutcome("skipped", step)

    def undo_forward(self) -> None:
        """Undoes what forward and backward left behind: gradients, buffers, the scaler's record of them."""
        self._clear_gradients()
        self.revert_buffers()

    def revert_buffers(self) -> None:
        """Undoes what forward did to the buffers."""
        if self.shield is not None and self._active:
            self.shield.revert()

    def overflow(self, step: int) -> StepOutcome:
        """An overflow that the loss scaler handles: it does not step, and lowers its scale."""
        self.scaler.step()
        self.scaler.update()
        self.revert_buffers()
        return StepOutcome("skipped", step, overflow=True)

    def snapshot_of(self, step: int | None) -> int | None:
        """The step of the newest healthy snapshot of ``step`` or before; None where there is none."""
        found = None if step is None else self._ring.newest(step)
        return None if found is None else found.step

    def drop_snapshots_after(self, step: int) -> None:
        """What was saved after ``step`` may be damaged on a rank."""
        self._ring.drop_after(step)

    def drop_damaged_snapshots(self, exchange: Callable[[Sequence[float]], Floats]) -> str:
        """Before a rollback; as ``SnapshotRing.drop_damaged``."""
        return self._ring.drop_damaged(exchange) if self._active else ""

    def halt(self, step: int) -> StepOutcome:
        """Restores the newest healthy snapshot, without cooldown; where there is none, skips."""
        if not self.can_roll_back():
            return self.skip(step)
        target = self._rollback.to_healthy()
        return StepOutcome("rolled_back", target.step, target.step, step - target.step)

    def launch(self, skip: Tensor) -> None:
        """Steps the optimizer on the device unless ``skip`` (0-dim float32) is 1; ``fused`` has the flag."""
        self._ring.before_step()
        self._step_optimizer(later=True)
        if self.shield is not None:
            self.shield.accept(unless=skip)

    def before_backward(self) -> None:
        """Checks the schedule, and restores the averaged weights after a skip: they must not learn twice from
        the same weights."""
        self._schedule.check()
        if self._ema_before_skip is not None and self._ema is not None:
            self._ema.load_state_dict(self._ema_before_skip)
            self._ema_before_skip = None

    def _clear_gradients(self) -> None:
        self.scaler.forget()
        self._observer.clear_gradients()

    def _begin(self, step: int) -> None:
        if self.shield is not None:
            self.shield.begin()
        self._accept_state(step)

    def _accept_state(self, step: int) -> None:
        self._ema_before_skip = None
        self._schedule.accept()
        self._accept_buffers()
        if self.displacement is not None:
            self.displacement.start(step)

    def _accept_buffers(self) -> None:
        if self.shield is not None:
            self.shield.accept()
