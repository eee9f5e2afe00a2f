"""One guarded step, from the agreed rows to the report."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import Tensor

from guard.act.accumulation import correction
from guard.act.outside import FROZEN
from guard.agree.agreement import Value
from guard.agree.settings import digest
from guard.clip.base import scale_
from guard.decide.advice import Advice
from guard.errors import GuardHalt
from guard.observe.noise_scale import NoiseScale
from guard.observe.norms import to_host
from guard.observe.watched import remapped
from guard.parts import StepParts
from guard.recomputation import Again, Recomputation
from guard.record.recorder import Traces
from guard.records import OK, Incident, SampleEvidence
from guard.types import Agreed, Correction, Evidence, Floats, Movement, Observation, StepOutcome, StepReport
from guard.way_back import WayBack


class StepPipeline:
    """Runs the verbs, one attempt after the other, and counts steps and attempts."""

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._observer, self._agreement = parts.observer, parts.agreement
        self._decider, self._state, self._recorder = parts.decider, parts.state, parts.recorder
        self.step = 0
        self.attempt = 0
        self.last_local: float | Tensor = math.nan
        self.layer_norms: Floats = np.zeros(len(parts.observer.names))
        self._unknown_norms = np.full(parts.agreement.world_size, np.nan)
        self.seconds = 0.0
        """What the guard spent on the present attempt outside of ``run``."""
        self.noise = NoiseScale()
        self._unsettled: bool | None = None
        self._merged = False
        """Whether frozen weights were changed since a step was applied."""
        self._decisions = 0
        """A digest of all decisions since the start or the resume."""
        self._advice = Advice(rank=parts.agreement.rank)
        self._way_back = WayBack(parts)
        self._recomputation = Recomputation(
            parts, self._observe, self._collect, partial(self.digest, "evidence")
        )

    @property
    def standing_steps(self) -> int:
        """Optimizer steps applied in the history that stands."""
        return self.step

    @property
    def in_flight(self) -> bool:
        """Whether a step has been launched whose outcome has not been read."""
        return False

    @property
    def by_host(self) -> bool:
        """Whether it is known before the backward that the host decides the attempt, and may change it."""
        return self._parts.config.mode == "exact"

    def run(self, again: Again | None, *, settle: bool) -> StepReport:
        """One attempt."""
        started = time.perf_counter()
        self._agreement.check_pending()
        self.follow_optimizer()
        return self._run_exact(started, again, settle=settle)

    def before_backward(self) -> None:
        """The gradients to come are those of what the optimizer steps now."""
        self.follow_optimizer()

    def follow_optimizer(self) -> None:
        """Takes the parameters that the optimizer steps now, wherever one is watched."""
        origins = self._observer.follow()
        if origins is None:
            return
        names, parameters = self._observer.names, self._observer.parameters
        self.layer_norms = remapped(self.layer_norms, origins)
        self._decider.follow(names, parameters, origins, self._observer.shards)
        self._recorder.follow(names, origins)
        if self._parts.local is not None:
            self._parts.local.follow(parameters)
        self._state.joined(self.step)

    def flush(self) -> StepReport | None:
        """What has not been reported yet: nothing, since every attempt is reported at once."""
        return None

    def judge_late(self) -> None:
        """Judges a step in flight; the next call of ``run`` or ``flush`` reports it."""

    def late(self) -> dict[str, Any] | None:
        """A step in flight, as plain numbers: ``resolve_saved`` continues with it."""
        return None

    def settle(self) -> None:
        """Ends an applied step: updates the health of the snapshots, and takes one when due."""
        clean, self._unsettled = self._unsettled, None
        if clean is not None:
            self._state.settle(self.step, clean=clean)

    def digest(self, phase: Literal["step", "evidence"]) -> int:
        """A digest of the state that decides: equal on ranks that will decide alike; 0 where there is one."""
        if self._agreement.world_size == 1:
            return 0
        decider, forgotten = self._decider, self._agreement.forgotten
        memory = self.step, self.attempt, decider.ladder.state_dict(), decider.changes, forgotten
        return digest(phase, self._parts.settings.digest(), self._decisions, *memory)

    def wants_local(self) -> bool:
        """Whether the coming backward's local norm is to be taken."""
        every = self._parts.config.local_norm
        return every != "off" and (self.attempt + 1) % (1 if every == "always" else every) == 0

    def _run_exact(self, started: float, again: Again | None, *, settle: bool) -> StepReport:
        repairs, number = self._parts.repairs, self.attempt + 1
        repairs.begin(self.step, number)
        overflow = self._state.scaler.unscale()
        agreed, seen = self._observe()
        self._state.checks.gradients_seen(self._observer.has_gradients)
        moved = self._state.movement(self.step)
        fault: Correction | None = None
        bad: list[SampleEvidence] = []
        handled = overflow and math.isfinite(agreed.loss)
        watched = (again is not None or repairs.on) and not handled and self._parts.config.mode != "off"
        watched = watched and not self._decider.own_spikes.on_trial
        expected = self._decider.foresee(agreed, seen, moved) if watched else OK
        repairs.look(self.step, number, bad=overflow or expected.kind != "ok")
        if again is not None and watched and not repairs.stops:
            far = partial(self._state.moved_far, self.step)
            agreed, seen, fault, bad = self._recomputation.run(
                again, agreed, seen, expected, moved, attempt=number, moved_far=far
            )
        self.attempt += 1
        fault, rate = fault or repairs.correction(seen, self.step), self._state.learning_rate
        evidence = repairs.evidence(agreed, seen, attempt=number, step=self.step, rate=rate)
        if evidence is None:
            evidence = self._evidence(agreed, seen, moved, overflow=handled, fault=fault, rate=rate)
        # Local norms of this very step: all ranks gather them alike, since the verdict is agreed.
        local_norms = self._unknown_norms if evidence.verdict.kind == "ok" else self._collect()
        samples = [] if evidence.anomaly is None else self._sample_ids()
        traces = Traces(local_norms, samples, self._distances(evidence), bad)
        outcome = self._state.overflow(self.step) if handled else self._act(evidence)
        self._parts.accumulation.close(outcome.action)
        incident = self._record(evidence, outcome, traces)
        if settle:
            self.settle()
        if outcome.action in ("applied", "clipped"):
            repairs.rest(self.step)
        if self._parts.local is not None:
            self.last_local = self._parts.local.take()
        return self._report(started, evidence, outcome, incident)

    def _observe(self) -> tuple[Agreed, Observation]:
        """The rows of all ranks and the norms of the gradients; a global norm that differs there raises."""
        early = None if self._observer.misplaced() else self._observer.measure()
        if early is not None and self._observer.shards is None and self._agreement.alone:
            agreed = self._agreement.own(local_norm=self.last_local)
            return agreed, self._correct(agreed, self._observer.read(early[0].numpy(), early[1]))
        if early is not None and self._observer.shards is None:
            square = early[0].sum() if self._agreement.world_size > 1 else 0.0
            gathered, rate = self._gather_rows(square), self._state.rate
            flat, squares, *rates = to_host(gathered, early[0], *rate.on_device())
            rate.learn(rates)
            read = flat.reshape(gathered.shape), squares, early[1]
            agreed, seen = self._read(*self._parts.repairs.corrected(*read, self.step, self.attempt + 1))
            return agreed, self._correct(agreed, seen)
        self._state.rate.learn([])
        # Settings are compared before the collectives of the shards, for which they must be equal.
        agreed, _ = self._agreement.read(self._gather_rows(math.nan).cpu().numpy().copy(), dict)
        pieces, owners = early or self._observer.measure()
        seen = self._observer.read(pieces.cpu().numpy(), owners)
        norm = self._agreement.agree_norm(seen.grad_norm, partial(self._named_norms, seen))
        return agreed, self._correct(agreed, seen.with_norm(norm))

    def _gather_rows(self, square: Value) -> Tensor:
        return self._agreement.gather(local_norm=self.last_local, square=square, digest=self.digest("step"))

    def _read(self, rows: Floats, pieces: Floats, owners: list[int]) -> tuple[Agreed, Observation]:
        """What the rows of all ranks and the squared norms of the pieces say, once they are on the host."""
        seen = self._observer.read(pieces, owners)
        agreed, norm = self._agreement.read(rows, partial(self._named_norms, seen))
        return agreed, seen.with_norm(norm)

    def _named_norms(self, seen: Observation) -> dict[str, str]:
        named = zip(self._observer.names, seen.layer_norms.tolist(), strict=True)
        return {f"the norm of {name}": f"{norm:.4g}" for name, norm in named}

    def _correct(self, agreed: Agreed, seen: Observation) -> Observation:
        """Dropped micro-batches are missing in the mean: rescales it to that of the others."""
        if not agreed.dropped_micro_batches or not math.isfinite(seen.grad_norm):
            return seen
        factor = correction(agreed.micro_batches, agreed.dropped_micro_batches)
        scale_(self._observer.gradients(), factor)
        return seen.scaled(factor)

    def _evidence(
        self,
        agreed: Agreed,
        seen: Observation,
        moved: Movement | None,
        *,
        overflow: bool = False,
        fault: Correction | None = None,
        rate: float | None = None,
    ) -> Evidence:
        self.layer_norms = seen.layer_norms
        evidence = self._decider.judge(
            agreed,
            seen,
            moved,
            attempt=self.attempt,
            step=self.step,
            learning_rate=self._state.learning_rate if rate is None else rate,
            previous_rate=self._state.rate.last,
            lr_scale=self._state.cooldown.lr_scale,
            can_roll_back=self._state.can_roll_back(),
            moved_far=partial(self._state.moved_far, self.step),
            travelled=partial(self._state.travelled, self.step),
            way_back=self._way_back.share,
            overflow=overflow,
            fault=fault,
        )
        self._decisions = digest(self._decisions, evidence.verdict.kind, evidence.decision.rung)
        self.noise.complete(agreed.local_norms)  # of the attempt before
        whole = fault is None and not overflow
        self.noise.begin(seen.grad_norm, accepted=evidence.verdict.kind == "ok" and whole)
        return evidence

    def _act(self, evidence: Evidence) -> StepOutcome:
        self._follow_rate(evidence)
        self._merged = self._merged or evidence.agreed.changed >= FROZEN
        if not self._parts.config.acts:
            return self._state.apply(self.step, lambda: None)
        rung = evidence.decision.rung
        if rung == "skip":
            return self._state.skip(self.step)
        if rung == "rollback":
            return self._roll_back(self.step, evidence)
        if rung == "halt":
            return self._state.halt(self.step)
        self._accept_change(self.step, evidence)
        clip = partial(self._decider.clipper.clip_, evidence.clip, self._state.fused.fold)
        return self._state.apply(self.step, clip, outlier=rung == "clip")

    def _roll_back(self, step: int, evidence: Evidence) -> StepOutcome:
        decision = evidence.decision
        # The verdict is agreed, so all ranks reach the collective in it.
        found = self._state.drop_damaged_snapshots(self._agreement.exchange)
        outcome = self._state.roll_back(
            step, recover=decision.recover, rate=decision.rate, verified=decision.verified
        )
        self._decider.rolled_back(outcome.step, decision.rate)
        self._parts.repairs.returned(outcome.step)
        return replace(outcome, found=found)

    def _follow_rate(self, evidence: Evidence) -> None:
        """Logs that the rate is too high, or goes on with another one."""
        rate = evidence.decision.rate
        if rate is not None and not rate.acts:
            self._advice.rate(rate.reason)
        elif rate is not None and not rate.again:
            self._state.cooldown.rate_factor = rate.factor

    def _accept_change(self, step: int, evidence: Evidence) -> None:
        """A change on purpose: the cooldown of its rollbacks ends; loaded weights are healthy, and so are
        those that an adapter was merged into, which no snapshot holds."""
        if evidence.decision.new_level:
            self._state.cooldown.end()
        if evidence.decision.adopt or self._merged:
            self._state.start(step)
            self._merged = False

    def _record(self, evidence: Evidence, outcome: StepOutcome, traces: Traces) -> Incident | None:
        self.step = outcome.step
        begins = self._recorder.note(evidence, outcome)
        if outcome.action in ("applied", "clipped"):
            if evidence.clean:
                self._recorder.clean(evidence, self.step)
            self._unsettled = evidence.clean
        if not begins:
            return None
        recovery, rate = None, evidence.decision.rate
        if outcome.action == "rolled_back":
            recovery = self._state.cooldown.plan(
                outcome.step, replays=rate is not None and rate.again and rate.replays
            )
        return self._recorder.incident(evidence, outcome, traces, recovery)

    def _report(
        self, started: float, evidence: Evidence, outcome: StepOutcome, incident: Incident | None
    ) -> StepReport:
        seconds = self.seconds + time.perf_counter() - started - outcome.optimizer_seconds
        self.seconds = 0.0
        agreed, off = evidence.agreed, self._parts.config.mode == "off"
        report = StepReport(
            step=outcome.step,
            attempt=evidence.attempt,
            action=outcome.action,
            loss=agreed.loss,
            grad_norm=evidence.grad_norm,
            clip_coef=outcome.clip_coef,
            clip_threshold=evidence.clip.limit,
            verdict=evidence.verdict,
            learning_rate=evidence.learning_rate if outcome.learning_rate is None else outcome.learning_rate,
            guard_seconds=seconds,
            rolled_back_to=outcome.rolled_back_to,
            incident=incident,
            stop=agreed.stop,
            checkpoint=agreed.checkpoint,
            overflow=outcome.overflow,
            local_norms=None if self._parts.local is None else agreed.local_norms.tolist(),
            recovery=self._state.cooldown.strengths(),
            rate_factor=self._state.cooldown.rate_factor,
            rate_advice=self._decider.rate.advice,
            update_norm=evidence.update_norm,
            update_ratio=None if evidence.moved is None else evidence.moved.ratio,
            buffer_jump=agreed.buffer_jump,
            attention_logit=self._state.attention_logit,
            alarm_factor=None if off else self._advice.alarm_factor(self.attempt, self._decider.detector),
            excluded_ranks=evidence.excluded_ranks,
            excluded_samples=evidence.excluded_samples,
            faulty_ranks=evidence.faulty_ranks,
            dropped_micro_batches=agreed.dropped_micro_batches,
            anomaly=evidence.anomaly,
        )
        left = self._decider.ladder.rollbacks_left(evidence.attempt)
        self._recorder.step(report, self.layer_norms, self.noise.estimate(), rollbacks_left=left)
        if evidence.decision.rung == "halt" and incident is not None and self._parts.config.acts:
            raise GuardHalt(f"step {evidence.step}: {evidence.decision.reason}", incident)
        return report

    def _collect(self) -> Floats:
        local = self._parts.local
        return self._unknown_norms if local is None else self._gather(local.take())

    def _gather(self, local_norm: float) -> Floats:
        return self._agreement.collect(local_norm, digest=self.digest("evidence"))[0]

    def _distances(self, evidence: Evidence) -> Floats | None:
        """How far each parameter has moved, where something is wrong: the verdict is agreed, so all ranks
        reach the sum over shards in it."""
        return None if evidence.verdict.kind == "ok" else self._state.distances(self.step)

    def _sample_ids(self) -> list[int]:
        return [int(i) for i in getattr(self._parts.data, "last_ids", ())]
