"""One guarded step, from the agreed rows to the report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.act.accumulation import GradAccumulation, correction
from guard.act.training_state import TrainingState
from guard.agree.agreement import Agreement, digest
from guard.clip.base import scale_
from guard.config import GuardConfig
from guard.decide.decider import Decider
from guard.decide.rank_exclusion import without
from guard.decide.recompute import Result, Rewinder, faulty_ranks
from guard.errors import GuardHalt
from guard.observe.local_norms import LocalNorms
from guard.observe.noise_scale import NoiseScale
from guard.observe.observer import Observer
from guard.record.recorder import Recorder
from guard.records import Incident
from guard.types import OK, Agreed, Correction, Evidence, Observation, StepOutcome, StepReport, Verdict

Moved = tuple[float, float | None]
_WORTH_REPEATING = ("suspect", "spike", "nonfinite")


@dataclass(frozen=True, slots=True)
class StepParts:
    """What the five verbs are made of."""

    config: GuardConfig
    observer: Observer
    agreement: Agreement
    judge: Decider
    actor: TrainingState
    ledger: Recorder
    window: GradAccumulation
    rewinder: Rewinder
    local: LocalNorms | None
    data: Any
    device: torch.device


class StepPipeline:
    """Runs the verbs, one attempt after the other, and counts steps and attempts."""

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._observer, self._agreement = parts.observer, parts.agreement
        self._judge, self._actor, self._ledger = parts.judge, parts.actor, parts.ledger
        self.step = 0
        self.attempt = 0
        self.last_local: float | Tensor = math.nan
        self.last_norm = math.nan
        self.layer_norms: NDArray[np.float64] = np.zeros(len(parts.observer.names))
        self.seconds = 0.0
        """What the guard spent on the present attempt outside of ``run``."""
        self.noise = NoiseScale()
        self._unsettled: bool | None = None

    @property
    def standing_steps(self) -> int:
        """Optimizer steps applied in the history that stands."""
        return self.step

    def run(self, again: Callable[[], None] | None, *, settle: bool) -> StepReport:
        """One attempt; ``again`` repeats the batch's forward and backward, with their sends."""
        started = time.perf_counter()
        return self._exact(started, self._agreement.receive(), again, settle=settle)

    def flush(self) -> StepReport | None:
        """What has not been reported yet."""

    def settle(self) -> None:
        """Ends an applied step: judges the snapshots by it, and takes one when due."""
        clean, self._unsettled = self._unsettled, None
        if clean is not None:
            self._actor.settle(self.step, clean=clean)

    def digest(self, phase: Literal["step", "evidence"]) -> int:
        """Of the state that decides: equal on ranks that will decide alike."""
        mode = self._parts.config.mode
        return digest(phase, self.step, self.attempt, self._judge.ladder.state_dict(), mode)

    def wants_local(self) -> bool:
        """Whether the coming backward's local norm is to be taken."""
        every = self._parts.config.local_norm
        return every != "off" and (self.attempt + 1) % (1 if every == "always" else every) == 0

    def _exact(
        self, started: float, agreed: Agreed, again: Callable[[], None] | None, *, settle: bool
    ) -> StepReport:
        overflow = self._actor.scaler.unscale()
        seen = self._correct(agreed, self._observer.observe())
        moved = self._actor.moved(self.step)
        fault: Correction | None = None
        if again is not None and not overflow and self._parts.config.acts:
            expected = self._judge.foresee(agreed, seen, moved)
            if self._parts.rewinder.ready and expected.kind in _WORTH_REPEATING:
                agreed, seen, fault = self._repeat(again, agreed, seen, expected, moved)
            self._parts.rewinder.arm()
        self.attempt += 1
        handled = overflow and math.isfinite(agreed.loss)
        evidence = self._evidence(agreed, seen, moved, overflow=handled, fault=fault)
        local_norms = self._evidence_norms(evidence.verdict)
        samples = self._samples(evidence)
        distances = self._distances(evidence)
        outcome = self._actor.overflow(self.step) if handled else self._act(evidence)
        self._parts.window.close()
        incident = self._record(evidence, outcome, local_norms, samples, distances)
        if settle:
            self.settle()
        if self._parts.local is not None:
            self.last_local = self._parts.local.take()
        return self._report(started, evidence, outcome, incident, overflow=handled)

    def _repeat(
        self,
        again: Callable[[], None],
        agreed: Agreed,
        seen: Observation,
        expected: Verdict,
        moved: Moved | None,
    ) -> tuple[Agreed, Observation, Correction | None]:
        """Computes the batch again. All ranks come here, since the verdict is that of agreed numbers."""
        first, norms = Result(agreed, self._collect(), seen.grad_norm), seen.layer_norms
        agreed, seen = self._recompute(again)
        second = Result(agreed, self._collect(), seen.grad_norm)
        ranks = tuple(faulty_ranks(first, second, self._parts.device))
        value = {"loss": first.agreed.loss, "buffers": first.agreed.buffer_jump or math.nan}.get(
            expected.signal, first.grad_norm
        )
        if ranks:
            return agreed, seen, Correction(ranks, expected, value, norms)
        culprit = self._judge.culprit(self.attempt + 1, agreed, second.local_norms, expected)
        if culprit is not None:
            better = self._recompute_without(culprit, again, agreed, moved)
            if better is not None:
                return *better, Correction((culprit,), expected, value, norms, hardware=False)
        return agreed, seen, None

    def _recompute(self, again: Callable[[], None], *, absent: bool = False) -> tuple[Agreed, Observation]:
        """The same batch once more; ``absent``: this rank takes part, but adds nothing."""
        self._actor.undo_forward()
        self._parts.rewinder.rewind()
        self._parts.window.again(absent=absent)
        again()
        if absent:
            self._actor.revert_buffers()
        agreed = self._agreement.receive()
        self._actor.scaler.unscale()
        return agreed, self._correct(agreed, self._observer.observe())

    def _recompute_without(
        self, culprit: int, again: Callable[[], None], bad: Agreed, moved: Moved | None
    ) -> tuple[Agreed, Observation] | None:
        """The mean over the other ranks; None if that is bad too: then nothing of it is applied."""
        world_size = self._agreement.world_size
        _, seen = self._recompute(again, absent=culprit == self._agreement.rank)
        factor = world_size / (world_size - 1)
        agreed, seen = without(bad, culprit), seen.scaled(factor)
        if self._judge.foresee(agreed, seen, moved).kind != "ok":
            return None
        scale_(self._observer.gradients(), factor)
        self._judge.rank_exclusion.leave_out()
        return agreed, seen

    def _correct(self, agreed: Agreed, seen: Observation) -> Observation:
        """Micro-batches that were left out are missing in the mean: the others make it up."""
        factor = correction(agreed.micro_batches, agreed.dropped_micro_batches)
        if factor == 1.0 or not math.isfinite(seen.grad_norm):
            return seen
        scale_(self._observer.gradients(), factor)
        return seen.scaled(factor)

    def _evidence(
        self,
        agreed: Agreed,
        seen: Observation,
        moved: Moved | None,
        *,
        overflow: bool = False,
        fault: Correction | None = None,
    ) -> Evidence:
        self.layer_norms, self.last_norm = seen.layer_norms, seen.grad_norm
        evidence = self._judge.judge(
            agreed,
            seen,
            moved,
            attempt=self.attempt,
            step=self.step,
            learning_rate=self._actor.learning_rate,
            can_roll_back=self._actor.can_roll_back(),
            overflow=overflow,
            fault=fault,
        )
        self.noise.complete(agreed.local_norms.tolist())  # of the attempt before
        whole = fault is None and not overflow
        self.noise.begin(seen.grad_norm, accepted=evidence.verdict.kind == "ok" and whole)
        return evidence

    def _act(self, evidence: Evidence) -> StepOutcome:
        if not self._parts.config.acts:
            return self._actor.apply(self.step, lambda: None)
        rung = evidence.decision.rung
        if rung == "skip":
            return self._actor.skip(self.step)
        if rung == "rollback":
            return self._actor.roll_back(self.step)
        if rung == "halt":
            return self._actor.halt(self.step)
        fold = self._actor.fused.fold
        return self._actor.apply(self.step, lambda: self._judge.clipper.clip_(evidence.clip, fold))

    def _record(
        self,
        evidence: Evidence,
        outcome: StepOutcome,
        local_norms: NDArray[np.float64],
        samples: list[int],
        distances: NDArray[np.float64] | None,
    ) -> Incident | None:
        self.step = outcome.step
        begins = self._ledger.note(evidence)
        if outcome.action in ("applied", "clipped"):
            if evidence.clean:
                self._ledger.clean(evidence, self.step)
            self._unsettled = evidence.clean
        if not begins:
            return None
        recovery = self._actor.recovery.plan(outcome.step) if outcome.action == "rolled_back" else None
        return self._ledger.incident(
            evidence,
            outcome,
            local_norms=local_norms,
            samples=samples,
            recovery=recovery,
            distances=distances,
        )

    def _report(
        self,
        started: float,
        evidence: Evidence,
        outcome: StepOutcome,
        incident: Incident | None,
        *,
        overflow: bool = False,
    ) -> StepReport:
        seconds = self.seconds + time.perf_counter() - started - outcome.optimizer_seconds
        self.seconds = 0.0
        report = describe(
            evidence,
            outcome,
            incident,
            guard_seconds=seconds,
            overflow=overflow,
            local=self._parts.local is not None,
            recovery=self._actor.recovery.strengths(),
        )
        left = self._judge.ladder.rollbacks_left(evidence.attempt)
        self._ledger.step(report, self.layer_norms, self.noise.estimate(), rollbacks_left=left)
        if evidence.decision.rung == "halt" and incident is not None and self._parts.config.acts:
            raise GuardHalt(f"step {evidence.step}: {evidence.decision.reason}", incident)
        return report

    def _evidence_norms(self, verdict: Verdict) -> NDArray[np.float64]:
        """Local norms of this very step, gathered only when the agreed verdict asks: all ranks come here."""
        return self._nothing() if verdict.kind == "ok" else self._collect()

    def _collect(self) -> NDArray[np.float64]:
        local = self._parts.local
        return self._nothing() if local is None else self._gather(local.take())

    def _gather(self, local_norm: float) -> NDArray[np.float64]:
        return self._agreement.collect(local_norm, digest=self.digest("evidence"))

    def _distances(self, evidence: Evidence) -> NDArray[np.float64] | None:
        """How far each parameter has moved of late, where something is wrong: all ranks come here alike."""
        return None if evidence.verdict.kind == "ok" else self._actor.distances(self.step)

    def _nothing(self) -> NDArray[np.float64]:
        return np.full(self._agreement.world_size, np.nan)

    def _samples(self, evidence: Evidence) -> list[int]:
        return [] if evidence.verdict.kind == "ok" and not evidence.excluded_ranks else self._ids()

    def _ids(self) -> list[int]:
        return [int(i) for i in getattr(self._parts.data, "last_ids", ())]


def describe(
    evidence: Evidence,
    outcome: StepOutcome,
    incident: Incident | None,
    *,
    guard_seconds: float,
    overflow: bool,
    local: bool,
    recovery: dict[str, float],
) -> StepReport:
    """The report of an attempt that was judged as ``evidence`` says and ended in ``outcome``."""
    return StepReport(
        step=outcome.step,
        attempt=evidence.attempt,
        action=outcome.action,
        loss=evidence.agreed.loss,
        grad_norm=evidence.grad_norm,
        clip_coef=outcome.clip_coef,
        clip_threshold=evidence.clip.limit,
        verdict=evidence.verdict,
        learning_rate=evidence.learning_rate,
        guard_seconds=guard_seconds,
        rolled_back_to=outcome.rolled_back_to,
        incident=incident,
        stop=evidence.agreed.stop,
        checkpoint=evidence.agreed.checkpoint,
        overflow=overflow,
        local_norms=evidence.agreed.local_norms.tolist() if local else None,
        recovery=recovery,
        update_norm=evidence.update_norm,
        buffer_jump=evidence.agreed.buffer_jump,
        excluded_ranks=evidence.excluded_ranks,
    )


def pending(step: int, attempt: int, learning_rate: float) -> StepReport:
    """What a deferred guard says of its first step: nothing yet."""
    return StepReport(
        step=step,
        attempt=attempt,
        action="applied",
        loss=math.nan,
        grad_norm=math.nan,
        clip_coef=1.0,
        clip_threshold=None,
        verdict=OK,
        learning_rate=learning_rate,
        guard_seconds=0.0,
        pending=True,
    )
