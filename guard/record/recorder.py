"""Every anomaly becomes an incident: counted, journaled and followed to its outcome."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from guard.config import GuardConfig
from guard.observe.noise_scale import NoiseEstimate
from guard.record.attribution import LayerHistory, first_mover, jump_of_rate, rank_moved, rank_ranks
from guard.record.journal import Journal
from guard.record.lasting import LastingCondition
from guard.record.metrics import GuardMetrics, Layers
from guard.record.totals import Totals
from guard.records import OK, CooldownInfo, Incident, LayerEvidence, SampleEvidence, Verdict, WindowRow
from guard.types import Evidence, Floats, StepOutcome, StepReport

WINDOW_ATTEMPTS = 16
MAX_SAMPLES = 64


class Traces(NamedTuple):
    """What an incident shows beside the evidence, taken before the step is acted on."""

    local_norms: Floats
    samples: list[int]
    moved: Floats | None
    """How far each parameter has moved; None where that is not watched."""
    bad_samples: list[SampleEvidence]


class Recorder:
    """Writes what happened. Its totals survive a rollback."""

    def __init__(
        self,
        job: str,
        names: list[str],
        metrics: GuardMetrics | None,
        journal: Journal | None,
        config: GuardConfig,
    ) -> None:
        self._job = job
        self._names = names
        self._metrics = metrics
        self._journal = journal
        self._shadow = config.mode == "shadow"
        self._rollback_budget = config.budget.rollbacks
        self._window: deque[WindowRow] = deque(maxlen=WINDOW_ATTEMPTS)
        self._open: list[tuple[int, int, int]] = []
        self._condition = LastingCondition(shadow=self._shadow, own_skips=config.budget.consecutive_skips)
        self.totals = Totals() if metrics is None else metrics.totals
        self.layers = LayerHistory(names)

    def follow(self, names: list[str], origins: Sequence[int]) -> None:
        """These are the layers from now on; ``origins``: the former index of each, or -1."""
        self._names = names
        self.layers.follow(names, origins)

    def note(self, evidence: Evidence, outcome: StepOutcome) -> bool:
        """Adds the attempt to the window; true where an incident begins: at each anomaly, but a condition
        that lasts belongs to the incident with which it began."""
        rate = evidence.learning_rate if outcome.learning_rate is None else outcome.learning_rate
        self._window.append(
            WindowRow(
                attempt=evidence.attempt,
                step=evidence.step,
                loss=evidence.agreed.loss,
                grad_norm=evidence.grad_norm,
                update_norm=evidence.update_norm,
                learning_rate=rate,
                ratios=evidence.ratios,
            )
        )
        self._end_condition(evidence, outcome)
        return evidence.anomaly is not None and self._condition.begins(evidence, outcome.action)

    def _end_condition(self, evidence: Evidence, outcome: StepOutcome) -> None:
        ended = self._condition.ended(evidence, outcome.action)
        if ended is None or self._journal is None:
            return
        followed = {incident for incident, _, _ in self._open}
        for incident in ended.incidents:
            if incident not in followed:
                self._write_outcome(incident, "ended", outcome.step, ended.attempts)

    def incident(
        self, evidence: Evidence, outcome: StepOutcome, traces: Traces, recovery: dict[str, Any] | None
    ) -> Incident:
        """Builds and journals the incident of this attempt."""
        verdict = evidence.anomaly or OK
        reason = _reason(evidence) + jump_of_rate(list(self._window)[:-1], evidence.previous_rate)
        layers = self._layers(evidence, verdict)
        if verdict.kind == "vanishing" and evidence.layer is None and layers:
            reason = f"the gradient has all but vanished, most of all in {layers[0].name}"
        if outcome.found:
            reason = f"{reason}; {outcome.found}"
        self.totals.incidents += 1
        halted = evidence.decision.rung == "halt" and not self._shadow
        incident = Incident(
            id=self.totals.incidents,
            job=self._job,
            time=time.time(),
            attempt=evidence.attempt,
            step=evidence.step,
            verdict=verdict.kind,
            signal=verdict.signal,
            value=_value(evidence, verdict.signal),
            score=verdict.score,
            baseline=verdict.baseline,
            action="halted" if halted else outcome.action,
            reason=reason,
            rolled_back_to=outcome.rolled_back_to,
            steps_lost=outcome.steps_lost,
            seconds=outcome.seconds,
            would=evidence.decision.rung if self._shadow else None,
            source=outcome.source if outcome.rolled_back_to is not None else None,
            recovery=None if recovery is None else CooldownInfo.from_row(recovery),
            learning_rate=self._window[-1].learning_rate,
            previous_learning_rate=evidence.previous_rate,
            moved_first=first_mover(self._window, verdict),
            faulty_ranks=evidence.faulty_ranks,
            excluded_ranks=evidence.excluded_ranks,
            dropped_micro_batches=evidence.agreed.dropped_micro_batches,
            window=list(self._window),
            layers=layers,
            moved=[] if traces.moved is None else rank_moved(self._names, traces.moved),
            ranks=rank_ranks(evidence.agreed.losses, traces.local_norms),
            samples=traces.samples[:MAX_SAMPLES],
            bad_samples=traces.bad_samples,
            excluded_samples=evidence.excluded_samples,
            by_rate=evidence.decision.by_rate and verdict.kind != "warning",
        )
        if self._journal is not None:
            self._journal.incident(incident)
        self._condition.reported(incident.id)
        self._follow(incident, evidence.step, evidence.attempt)
        return incident

    def change(self, reason: str, *, step: int, attempt: int, steps: int) -> None:
        """A change on purpose was announced: counted and journaled."""
        self.totals.changes += 1
        if self._journal is not None:
            self._journal.change(reason, step=step, attempt=attempt, steps=steps)

    def rescaled(self, reason: str, layers: int, *, step: int, attempt: int) -> None:
        """Queries and keys of some layers were rescaled: counted and journaled."""
        self.totals.qk_clips += layers
        if self._journal is not None:
            self._journal.change(reason, step=step, attempt=attempt, steps=0)

    def _layers(self, evidence: Evidence, verdict: Verdict) -> list[LayerEvidence]:
        if verdict.kind == "vanishing":
            return self.layers.rank_faded(evidence.layer_norms, first=evidence.layer)
        return self.layers.rank(
            evidence.layer_norms if evidence.fault is None else evidence.fault.layer_norms
        )

    def clean(self, evidence: Evidence, step: int) -> None:
        """A clean step was applied: the layers' baselines take it in, and incidents before it are closed."""
        self.layers.accept(evidence.layer_norms)
        if self._open and step > max(left for _, _, left in self._open):
            self._close_all("recovered", step, evidence.attempt)

    def step(
        self, report: StepReport, layer_norms: Floats, noise: NoiseEstimate | None, *, rollbacks_left: int
    ) -> None:
        """Counts the attempt and shows it in the metrics."""
        self.totals.observe(report)
        if self._metrics is not None:
            self._metrics.observe(
                report,
                Layers(self._names, layer_norms),
                noise_scale=None if noise is None else noise.ratio,
                rollback_budget=self._rollback_budget,
                rollbacks_left=rollbacks_left,
            )

    def _follow(self, incident: Incident, step: int, attempt: int) -> None:
        if incident.action == "rolled_back":
            self._close_all("recurred", step, attempt)
        if incident.action in ("rolled_back", "skipped", "halted"):
            self._open.append((incident.id, attempt, step))
        if incident.action == "halted":
            self._close_all("halted", step, attempt)

    def _close_all(self, outcome: str, step: int, attempt: int) -> None:
        for incident_id, began, _ in self._open:
            self._write_outcome(incident_id, outcome, step, attempt - began)
        self._open = []

    def _write_outcome(self, incident: int, outcome: str, step: int, attempts: int) -> None:
        if self._journal is not None:
            self._journal.outcome(incident, outcome, step=step, steps=attempts, job=self._job)

    def state_dict(self) -> dict[str, Any]:
        """Totals, open incidents, window and the baselines of the layers."""
        return {
            "totals": self.totals.state_dict(),
            "open": [list(entry) for entry in self._open],
            "condition": self._condition.state_dict(),
            "window": [row.to_row() for row in self._window],
            "layers": self.layers.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``; older states have their totals in those of the metrics."""
        self.totals.load_state_dict(state.get("totals", {"incidents": int(state.get("incidents", 0))}))
        self._open = [(int(i), int(a), int(s)) for i, a, s in state["open"]]
        if "condition" in state:
            self._condition.load_state_dict(state["condition"])
        self._window = deque(map(WindowRow.from_row, state["window"]), maxlen=WINDOW_ATTEMPTS)
        self.layers.load_state_dict(state["layers"])


def _reason(evidence: Evidence) -> str:
    """Why, as the incident words it: also what was corrected before it was applied."""
    agreed, fault = evidence.agreed, evidence.fault
    if fault is not None and fault.reason:
        return fault.reason
    if fault is not None and fault.samples:
        named = ", ".join(map(str, fault.samples))
        return f"the step is applied without sample{'s' * (len(fault.samples) > 1)} {named}"
    if fault is not None and not fault.ranks:
        return "computed again with other random numbers, the batch is normal: that shows no hardware fault"
    if fault is not None:
        ranks = ", ".join("unknown" if rank < 0 else str(rank) for rank in fault.ranks)
        if not fault.hardware:
            return f"the data of rank {ranks} stays bad: the rank is excluded"
        reason = f"computed again, the batch gave another result on rank {ranks}: a hardware fault"
        return reason if evidence.verdict.kind == "ok" else f"{reason}; {evidence.decision.reason}"
    if agreed.dropped_micro_batches and evidence.verdict.kind == "ok":
        return f"{agreed.dropped_micro_batches} of {agreed.micro_batches} micro-batches not finite: dropped"
    return evidence.decision.reason


def _value(evidence: Evidence, signal: str) -> float:
    """What the signal was when it was found bad."""
    if evidence.fault is not None:
        return evidence.fault.value
    if evidence.agreed.dropped_micro_batches and evidence.verdict.kind == "ok":
        return math.nan
    values = {
        "loss": evidence.agreed.loss,
        "grad_norm": evidence.grad_norm,
        "update_norm": evidence.update_norm,
        "buffers": evidence.agreed.buffer_jump,
    }
    value = values[signal]
    return math.nan if value is None else value
