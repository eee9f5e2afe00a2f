"""A step decided on the device: the host launches it, and reads one step later what happened.

Norms, finite test, thresholds and the clip coefficient stay on the device and enter the fused optimizer as
``grad_scale`` and ``found_inf``. When it launches a step, the host uploads what it knows as limits; what the
step did comes back in pinned memory, while the host is already in the next one.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guard.agree.agreement import DROPPED, JUMP, LOSS, SQUARE, same_norms
from guard.clip.base import EPSILON, coefficient
from guard.errors import GuardError
from guard.observe.displacement import Moving
from guard.observe.host_copy import HostCopy
from guard.parts import StepParts
from guard.recomputation import Again
from guard.record.recorder import Traces
from guard.records import SampleEvidence
from guard.step import StepPipeline
from guard.types import Agreed, Evidence, Floats, Movement, Observation, StepLimits, StepOutcome, StepReport


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a ``HostCopy`` has read."""

    arrays: list[Floats]

    def read(self) -> list[Floats]:
        return self.arrays


@dataclass(slots=True)
class Launched:
    """One step in flight."""

    limits: StepLimits
    owners: list[int]
    shape: torch.Size
    host: HostCopy | Arrived
    moving: Moving | None
    learning_rate: float
    """NaN where it is on the device."""
    previous_rate: float | None
    samples: list[int]

    def read(self) -> tuple[Floats, Floats, Floats, float, bool]:
        """Waits until it is done: rows of all ranks, squared norms of all pieces of the gradients, those of
        the movement, the learning rate, whether it was skipped."""
        skipped, rows, squares, distances, rate = self.host.read()
        known = float(rate[0]) if len(rate) else self.learning_rate
        return rows.reshape(self.shape), squares, distances, known, bool(skipped[0])

    def state_dict(self) -> dict[str, Any]:
        """Waits until it is done; changes nothing, and asks no other rank."""
        plain = ("owners", "learning_rate", "previous_rate", "samples")
        known = {name: getattr(self, name) for name in plain}
        arrays = [array.tolist() for array in self.host.read()]
        return {**known, "limits": asdict(self.limits), "shape": list(self.shape), "arrays": arrays}

    @classmethod
    def loaded(cls, state: dict[str, Any]) -> Launched:
        """As ``state_dict`` has it. The movement of the weights is not known any more."""
        arrays = [np.asarray(array, dtype=np.float64) for array in state["arrays"]]
        arrays[3] = arrays[3][:0]
        known = {**state, "limits": StepLimits(**state["limits"]), "shape": torch.Size(state["shape"])}
        del known["arrays"]
        return cls(**known, host=Arrived(arrays), moving=None)


class DeferredStepPipeline(StepPipeline):
    """Launches each attempt without waiting for it, and reports it one attempt later.

    An attempt is decided on the host where the device cannot decide it: before there is a history to take
    limits from, during a cooldown, where ranks are compared or a batch is computed twice, and after an
    attempt that was not as usual. With a closure, or where micro-batches were dropped, that holds for as many
    attempts as bad steps count for the exclusion of a rank: all that the host can do is then done for the bad
    batches that follow. It is reported one attempt later too.
    """

    def __init__(self, parts: StepParts) -> None:
        super().__init__(parts)
        self._device = parts.device
        self._late: Launched | StepReport | None = None
        self._by_host_until, self._closure = 0, False

    @property
    def by_host(self) -> bool:
        able = self._decider.detector.ready and not self._state.cooldown.active
        return not able or self._decider.own_spikes.on_trial or self.attempt < self._by_host_until

    @property
    def standing_steps(self) -> int:
        """A step in flight counts as applied."""
        return self.step + self.in_flight

    @property
    def in_flight(self) -> bool:
        """Whether a step has been launched whose outcome has not been read."""
        return isinstance(self._late, Launched)

    def run(self, again: Again | None, *, settle: bool) -> StepReport:
        """Reports the attempt before, and launches this one."""
        started = time.perf_counter()
        self._agreement.check_pending()
        launched, by_host = self.in_flight, self.by_host  # as it was for the backward
        self._closure = again is not None
        report = self.flush()
        self.follow_optimizer()
        if report is not None and report.action == "rolled_back" and launched:
            self._agreement.clear()
            self._state.undo_forward()  # this batch was computed with weights that are gone
            return report
        if by_host or self.by_host or self._host_has_to(again):
            self._late = self._run_exact(started, again, settle=settle)
        else:
            self._late = self._launch()
            self._parts.search.launched()
            if again is not None:
                self._parts.replayer.arm()
        return report or StepReport(  # of the first step nothing is known yet
            step=self.step,
            attempt=self.attempt,
            learning_rate=self._state.learning_rate,
            guard_seconds=0.0,
            pending=True,
        )

    def _host_has_to(self, again: Again | None) -> bool:
        """Whether ranks are compared before this attempt, or its batch is computed twice."""
        twice = again is not None and self._recomputation.due(self.attempt + 1)
        return twice or self._parts.repairs.due(self.step)

    def _watch(self, report: StepReport) -> None:
        """After an attempt that was not as usual the host decides those that follow."""
        whole = not (report.dropped_micro_batches or report.excluded_ranks or report.excluded_samples)
        if report.applied and whole:
            return
        series = self._parts.config.rank_exclusion.window_steps
        lasting = self._closure or report.dropped_micro_batches > 0
        self._by_host_until = max(self._by_host_until, report.attempt + 1 + (series if lasting else 0))

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
        report = self._resolve(late, time.perf_counter()) if isinstance(late, Launched) else late
        if report is not None:
            self._watch(report)
        return report

    def judge_late(self) -> None:
        if isinstance(self._late, Launched):
            self._late = self._resolve(self._late, time.perf_counter())

    def late(self) -> dict[str, Any] | None:
        return self._late.state_dict() if isinstance(self._late, Launched) else None

    def resolve(self, late: dict[str, Any]) -> StepReport:
        """Judges a step that was in flight when ``late`` was saved; the next call of ``run`` reports it."""
        self._late = report = self._resolve(Launched.loaded(late), time.perf_counter())
        return report

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
        self._parts.accumulation.close(None)
        self.attempt += 1
        self._state.take_snapshot_when_due(self.step + 1)
        if self._parts.local is not None:
            total = self._parts.local.total()
            self.last_local = math.nan if total is None else total
        used, empty = self._state.rate.used, pieces[:0]
        host = HostCopy([skip, rows, pieces, empty if moving is None else moving.pieces, *(used or [empty])])
        last = math.nan if used else self._state.rate.last
        rate = self._state.learning_rate if last is None else last
        return Launched(limits, owners, rows.shape, host, moving, rate, previous, self._sample_ids())

    @torch.no_grad()
    def _decide_on_device(self, rows: Tensor, limits: StepLimits) -> Tensor:
        """Sets scale and skip flag for the optimizer's next step; skipped where the ranks' norms differ.

        Args:
            rows: those of all ranks, [ranks, columns], on the device.
            limits: from what the host knew before.

        Returns:
            The skip flag, 0-dim float32, exactly 0 or 1.
        """
        bounds = self._upload([limits.loss, limits.grad_norm, limits.jump, limits.clip])
        norm, loss, dropped = rows[0, SQUARE].sqrt(), rows[:, LOSS].mean(), rows[:, DROPPED].sum()
        jump = rows[:, JUMP].max()
        finite = torch.isfinite(norm + loss + jump) & (dropped == 0) & same_norms(rows)
        normal = (loss <= bounds[0]) & (norm <= bounds[1]) & (jump <= bounds[2])
        skip = (normal & finite).logical_not().float()
        scale = ((norm + EPSILON) / bounds[3]).clamp(min=1.0).float()
        self._state.fused.on_device(scale if math.isfinite(limits.clip) else None, skip)
        return skip

    def _upload(self, numbers: list[float]) -> Tensor:
        if self._device.type == "cpu":
            return torch.tensor(numbers, dtype=torch.float64)
        pinned = torch.tensor(numbers, dtype=torch.float64, pin_memory=True)
        return pinned.to(self._device, non_blocking=True)

    def _resolve(self, late: Launched, started: float) -> StepReport:
        """Judges a launched step by what it did.

        All ranks gather local norms alike, since rows, norms and so the verdict are the same on each.
        """
        rows, squares, distances, rate, skipped = late.read()
        self._state.rate.last = rate
        squares_of_ranks = rows[:, SQUARE].copy()
        square = self._parts.repairs.gradient_differed(squares_of_ranks, self.step, self.attempt)
        if square is not None:
            rows[:, SQUARE] = square
        agreed, seen = self._read(rows, squares, late.owners)
        moved = None if late.moving is None else self._state.read_movement(late.moving, distances)
        evidence = self._evidence_late(agreed, seen, moved, rate, judged=square is None)
        evidence = replace(evidence, previous_rate=late.previous_rate)
        if skipped and evidence.decision.rung == "apply" and not evidence.decision.new_level:
            evidence = self._decider.as_skipped(evidence)
        local_norms = self._unknown_norms
        if evidence.verdict.kind != "ok" and self._parts.local is not None:
            local_norms = self._gather(float(self.last_local))
        bad = evidence.verdict.kind != "ok"
        self._parts.repairs.ask(squares_of_ranks, bad=skipped or evidence.decision.rung == "rollback")
        if bad and skipped:  # it counts for the exclusion of its rank
            self._decider.culprit(self.attempt, agreed, local_norms, evidence.verdict)
            self._parts.accumulation.skipped_late()
        samples = late.samples if bad else []
        traces = Traces(
            local_norms,
            samples,
            self._distances(evidence),
            self._bad_samples(evidence, rows, skipped=skipped),
        )
        outcome = self._act_late(evidence, late, skipped=skipped)
        incident = self._record(evidence, outcome, traces)
        self._unsettled = None
        if outcome.action != "rolled_back":
            if not skipped:
                self._state.complete_snapshot(self.step)
            self._state.update_snapshot_health(self.step, clean=evidence.clean and not skipped)
        return self._report(started, evidence, outcome, incident)

    def _bad_samples(self, evidence: Evidence, rows: Floats, *, skipped: bool) -> list[SampleEvidence]:
        """Where the batch changed nothing, it can still be computed as it was."""
        verdict, own = evidence.verdict, rows[self._agreement.rank]
        if not skipped or verdict.kind == "ok":
            return []
        loss, far = math.nan if own[DROPPED] else own[LOSS], partial(self._state.moved_far, self.step)
        return self._parts.search.find_late(verdict, float(loss), moved_far=far)

    def _evidence_late(
        self, agreed: Agreed, seen: Observation, moved: Movement | None, rate: float, *, judged: bool
    ) -> Evidence:
        """``judged``: as usual; else the batch is not applied, since its gradient differed on a rank."""
        repairs, number = self._parts.repairs, self.attempt
        evidence = (
            None if judged else repairs.evidence(agreed, seen, attempt=number, step=self.step, rate=rate)
        )
        return evidence or self._evidence(agreed, seen, moved, rate=rate)

    def _act_late(self, evidence: Evidence, late: Launched, *, skipped: bool) -> StepOutcome:
        step = self.step if skipped else self.step + 1
        if evidence.decision.rung == "rollback":
            return self._roll_back(step, evidence)
        if evidence.decision.rung == "halt":
            return self._state.halt(step)
        self._accept_change(step, evidence)
        if skipped:
            return StepOutcome("skipped", step)
        self._state.advance(evidence.learning_rate)
        factor = coefficient(evidence.grad_norm, late.limits.clip)
        return StepOutcome("clipped" if factor < 1.0 else "applied", step, clip_coef=factor)


def resolve_saved(pipeline: StepPipeline, parts: StepParts, state: dict[str, Any]) -> None:
    """Goes on after the step that was in flight when the guard's ``state`` was saved, in whichever mode.

    What has been loaded is of after it, and so is the first snapshot then. Every rank loads a state, so every
    rank reaches its collectives, if there are any.
    """
    late = state.get("late")
    if late is None:
        return
    reader = pipeline if isinstance(pipeline, DeferredStepPipeline) else DeferredStepPipeline(parts)
    reader.step, reader.attempt = pipeline.step, pipeline.attempt
    report = reader.resolve(late)
    pipeline.step = reader.step
    if report.action != "rolled_back":
        parts.state.load_state_dict(state["actor"], pipeline.step)
