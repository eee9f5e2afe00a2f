"""A step decided on the device: the host launches it, and reads one step later what happened.

Norms, finite test, thresholds and the clip coefficient stay on the device and enter the fused optimizer as
``grad_scale`` and ``found_inf``. When it launches a step, the host uploads what it knows as limits; what the
step did comes back in pinned memory, while the host is already in the next one.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guard.agree.agreement import DROPPED, JUMP, LOSS, SQUARE, same_norms
from guard.clip.base import EPSILON, coefficient
from guard.decide.decider import StepLimits
from guard.errors import GuardError
from guard.observe.displacement import Moving
from guard.parts import StepParts
from guard.record.recorder import Traces
from guard.step import Again, StepPipeline
from guard.types import Evidence, Floats, StepOutcome, StepReport


@dataclass(slots=True)
class Launched:
    """One step in flight."""

    limits: StepLimits
    owners: list[int]
    shape: torch.Size
    host: Tensor
    arrived: torch.cuda.Event | None
    moving: Moving | None
    learning_rate: float
    previous_rate: float | None
    samples: list[int]

    def read(self) -> tuple[Floats, Floats, Floats, bool]:
        """Waits until it is done: rows of all ranks, squared norms of all pieces of the gradients, those of
        the movement, whether it was skipped."""
        if self.arrived is not None:
            self.arrived.synchronize()
        values = self.host.numpy()
        rows = 1 + math.prod(self.shape)
        end = rows + len(self.owners)
        return values[1:rows].reshape(self.shape), values[rows:end], values[end:], bool(values[0])


class DeferredStepPipeline(StepPipeline):
    """Launches each attempt without waiting for it, and reports it one attempt later.

    An attempt is decided on the host where the device cannot decide it: before there is a history to take
    limits from, right after an attempt that was not applied, and during a cooldown. It is reported one
    attempt later too.
    """

    def __init__(self, parts: StepParts) -> None:
        super().__init__(parts)
        self._device = parts.device
        self._late: Launched | StepReport | None = None

    @property
    def standing_steps(self) -> int:
        """A step in flight counts as applied."""
        return self.step + self.in_flight

    @property
    def in_flight(self) -> bool:
        """Whether a step has been launched whose outcome has not been read."""
        return isinstance(self._late, Launched)

    def run(self, again: Again | None, *, settle: bool) -> StepReport:  # noqa: ARG002
        """Reports the attempt before, and launches this one."""
        started = time.perf_counter()
        self._agreement.check_pending()
        launched = self.in_flight
        report = self.flush()
        self.follow_optimizer()
        if report is not None and report.action == "rolled_back" and launched:
            self._agreement.clear()
            self._state.undo_forward()  # this batch was computed with weights that are gone
            return report
        able = self._decider.detector.ready and not self._state.cooldown.active
        if able and (report is None or report.applied):
            self._late = self._launch()
        else:
            self._late = self._run_exact(started, None, settle=settle)
        return report or StepReport(  # of the first step nothing is known yet
            step=self.step,
            attempt=self.attempt,
            learning_rate=self._state.learning_rate,
            guard_seconds=0.0,
            pending=True,
        )

    def before_backward(self) -> None:
        """The step in flight is read as it was launched: until then nothing changes."""

    def follow_optimizer(self) -> None:
        """As before each exact step.

        Raises:
            GuardError: a group was added that is not fused, so that its step cannot be decided on the device.
        """
        changes = self._observer.changes
        super().follow_optimizer()
        if changes and not self._state.fused.able:
            raise GuardError("mode deferred needs fused=True in every group, also in one that is added later")

    def flush(self) -> StepReport | None:
        """Waits for the step in flight and reports it. Raises as ``run`` does."""
        late, self._late = self._late, None
        return self._resolve(late, time.perf_counter()) if isinstance(late, Launched) else late

    def _launch(self) -> Launched:
        limits = self._decider.limits()
        moving = self._state.start_movement(self.step)
        previous = self._state.rate.last
        pieces, owners = self._observer.measure()
        self._state.checks.gradients_seen(self._observer.has_gradients)
        pieces = pieces.to(self._device)
        rows = self._gather_rows(pieces.sum())
        skip = self._decide_on_device(rows, limits)
        self._state.launch(skip)
        self.attempt += 1
        self._state.take_snapshot_when_due(self.step + 1)
        if self._parts.local is not None:
            total = self._parts.local.total()
            self.last_local = math.nan if total is None else total
        host, arrived = self._copy_to_host(skip, rows, pieces, moving)
        rate = self._state.learning_rate if self._state.rate.last is None else self._state.rate.last
        samples = self._sample_ids()
        return Launched(limits, owners, rows.shape, host, arrived, moving, rate, previous, samples)

    @torch.no_grad()
    def _decide_on_device(self, rows: Tensor, limits: StepLimits) -> Tensor:
        """Sets scale and skip flag for the optimizer's next step; skipped where the ranks' norms differ.

        Args:
            rows: those of all ranks, [ranks, columns], on the device.
            limits: from what the host knew before.

        Returns:
            The skip flag, 0-dim float32, exactly 0 or 1.
        """
        bounds = self._upload([limits.loss, limits.grad_norm, limits.clip])
        norm, loss, dropped = rows[0, SQUARE].sqrt(), rows[:, LOSS].mean(), rows[:, DROPPED].sum()
        finite = torch.isfinite(norm + loss + rows[:, JUMP].sum()) & (dropped == 0) & same_norms(rows)
        skip = (~((loss <= bounds[0]) & (norm <= bounds[1]) & finite)).float()
        scale = ((norm + EPSILON) / bounds[2]).clamp(min=1.0).float()
        self._state.fused.on_device(scale if math.isfinite(limits.clip) else None, skip)
        return skip

    @torch.no_grad()
    def _copy_to_host(
        self, skip: Tensor, rows: Tensor, pieces: Tensor, moving: Moving | None
    ) -> tuple[Tensor, torch.cuda.Event | None]:
        """Starts the copy of what happened to the host, float64; the event fires when it has arrived."""
        moved = [] if moving is None else [moving.pieces.to(self._device)]
        values = torch.cat([skip.double().view(1), rows.flatten(), pieces, *moved])
        if self._device.type == "cpu":
            return values, None
        host = torch.empty(values.shape, dtype=torch.float64, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self._device))
        return host, arrived

    def _upload(self, numbers: list[float]) -> Tensor:
        if self._device.type == "cpu":
            return torch.tensor(numbers, dtype=torch.float64)
        pinned = torch.tensor(numbers, dtype=torch.float64, pin_memory=True)
        return pinned.to(self._device, non_blocking=True)

    def _resolve(self, late: Launched, started: float) -> StepReport:
        """Judges a launched step by what it did.

        All ranks gather local norms alike, since rows, norms and so the verdict are the same on each.
        """
        rows, squares, distances, skipped = late.read()
        agreed, seen = self._read(rows, squares, late.owners)
        moved = None if late.moving is None else self._state.read_movement(late.moving, distances)
        evidence = self._evidence(agreed, seen, moved)
        evidence = replace(evidence, learning_rate=late.learning_rate, previous_rate=late.previous_rate)
        if skipped and evidence.decision.rung == "apply" and not evidence.decision.new_level:
            evidence = self._decider.as_skipped(evidence)
        local_norms = self._no_norms()
        if evidence.verdict.kind != "ok" and self._parts.local is not None:
            local_norms = self._gather(float(self.last_local))
        samples = [] if evidence.verdict.kind == "ok" else late.samples
        traces = Traces(local_norms, samples, self._distances(evidence), [])
        outcome = self._act_late(evidence, late, skipped=skipped)
        incident = self._record(evidence, outcome, traces)
        self._unsettled = None
        if outcome.action != "rolled_back":
            if not skipped:
                self._state.complete_snapshot(self.step)
            self._state.update_snapshot_health(self.step, clean=evidence.clean and not skipped)
        return self._report(started, evidence, outcome, incident)

    def _act_late(self, evidence: Evidence, late: Launched, *, skipped: bool) -> StepOutcome:
        step = self.step if skipped else self.step + 1
        if evidence.decision.rung == "rollback":
            return self._roll_back(step, evidence)
        if evidence.decision.rung == "halt":
            return self._state.halt(step)
        self._accept_change(step, evidence)
        if skipped:
            return StepOutcome("skipped", step)
        self._state.advance()
        factor = coefficient(evidence.grad_norm, late.limits.clip)
        return StepOutcome("clipped" if factor < 1.0 else "applied", step, clip_coef=factor)
