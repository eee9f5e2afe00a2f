"""Nothing is silent: every anomaly becomes an incident, counted, journaled and followed to its outcome."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.observe.noise_scale import NoiseEstimate
from guard.record.attribution import LayerHistory, first_mover, rank_moved, rank_ranks
from guard.record.journal import Journal
from guard.record.metrics import GuardMetrics, Layers
from guard.records import Incident
from guard.types import Evidence, StepOutcome, StepReport, Verdict

WINDOW_ATTEMPTS = 16
MAX_SAMPLES = 64


class Recorder:
    """Writes what happened. Its counters survive a rollback."""

    def __init__(
        self,
        job: str,
        names: list[str],
        metrics: GuardMetrics | None,
        journal: Journal | None,
        shadow: bool,
        rollback_budget: int,
    ) -> None:
        self._job = job
        self._names = names
        self._metrics = metrics
        self._journal = journal
        self._shadow = shadow
        self._rollback_budget = rollback_budget
        self._window: deque[dict[str, Any]] = deque(maxlen=WINDOW_ATTEMPTS)
        self._incidents = 0
        self._open: list[tuple[int, int, int]] = []
        self._last_kind = "ok"
        self._excluded_ranks: list[int] = []
        self.layers = LayerHistory(names)

    def note(self, evidence: Evidence) -> bool:
        """Adds the attempt to the window; true when it begins an anomaly that needs an incident.

        Drift, and a rank that is left out, are told when they begin, and counted at every attempt.
        """
        self._window.append(
            {
                "attempt": evidence.attempt,
                "step": evidence.step,
                "loss": evidence.agreed.loss,
                "grad_norm": evidence.grad_norm,
                "update_norm": evidence.update_norm,
                "ratios": evidence.ratios,
            }
        )
        kind, last = evidence.verdict.kind, self._last_kind
        self._last_kind = kind
        excluded_ranks, before = evidence.excluded_ranks, self._excluded_ranks
        self._excluded_ranks = excluded_ranks
        if kind == "drift":
            return kind != last
        if excluded_ranks:
            return excluded_ranks != before
        return kind != "ok" or evidence.agreed.dropped_micro_batches > 0 or evidence.fault is not None

    def incident(
        self,
        evidence: Evidence,
        outcome: StepOutcome,
        *,
        local_norms: NDArray[np.float64],
        samples: list[int],
        recovery: dict[str, Any] | None,
        distances: NDArray[np.float64] | None = None,
    ) -> Incident:
        """Builds, counts and journals the incident of this attempt."""
        verdict, reason = _told(evidence)
        layers = self._layers(evidence, verdict)
        if verdict.kind == "vanishing" and evidence.layer is None and layers:
            reason = f"the gradient has all but vanished, most of all in {layers[0]['name']}"
        self._incidents += 1
        halted = evidence.decision.rung == "halt" and not self._shadow
        incident = Incident(
            id=self._incidents,
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
            recovery=recovery,
            moved_first=first_mover(self._window, verdict),
            faulty_ranks=evidence.faulty_ranks,
            excluded_ranks=evidence.excluded_ranks,
            dropped_micro_batches=evidence.agreed.dropped_micro_batches,
            window=list(self._window),
            layers=layers,
            moved=[] if distances is None else rank_moved(self._names, distances),
            ranks=rank_ranks(evidence.agreed.losses, local_norms),
            samples=samples[:MAX_SAMPLES],
        )
        self._count(incident, outcome)
        if self._journal is not None:
            self._journal.incident(incident)
        self._follow(incident)
        return incident

    def _layers(self, evidence: Evidence, verdict: Verdict) -> list[dict[str, Any]]:
        if verdict.kind == "vanishing":
            return self.layers.rank_faded(evidence.layer_norms, first=evidence.layer)
        return self.layers.rank(
            evidence.layer_norms if evidence.fault is None else evidence.fault.layer_norms
        )

    def clean(self, evidence: Evidence, step: int) -> None:
        """A clean step was applied: layers learn what is usual, incidents left behind are closed."""
        self.layers.accept(evidence.layer_norms)
        if self._open and step > max(left for _, _, left in self._open):
            self._close_all("recovered", step, evidence.attempt)

    def step(
        self,
        report: StepReport,
        layer_norms: NDArray[np.float64],
        noise: NoiseEstimate | None,
        *,
        rollbacks_left: int,
    ) -> None:
        """Counts the step in the metrics."""
        if self._metrics is None:
            return
        if noise is not None:
            self._metrics.noise_scale(noise.ratio)
        self._metrics.rank_exclusions(len(report.excluded_ranks))
        recovery = report.recovery
        self._metrics.step(
            action=report.action,
            loss=report.loss,
            grad_norm=report.grad_norm,
            clip_threshold=report.clip_threshold,
            clip_coef=report.clip_coef,
            learning_rate=report.learning_rate,
            guard_seconds=report.guard_seconds,
            layers=Layers(self._names, layer_norms),
            local_norms=report.local_norms,
            update_norm=report.update_norm,
            buffer_jump=report.buffer_jump,
            regularization={f"recovery_{k}": v for k, v in recovery.items() if k != "lr_scale"},
            steps_accepted=report.step,
            rollback_budget=self._rollback_budget,
            rollbacks_left=rollbacks_left,
        )

    def _count(self, incident: Incident, outcome: StepOutcome) -> None:
        if self._metrics is None:
            return
        self._metrics.anomaly(signal=incident.signal, verdict=incident.verdict)
        for rank in incident.faulty_ranks:
            self._metrics.hardware_fault(rank=rank)
        self._metrics.dropped(incident.dropped_micro_batches)
        if outcome.rolled_back_to is not None:
            self._metrics.rollback(
                source=outcome.source, seconds=outcome.seconds, steps_lost=outcome.steps_lost
            )

    def _follow(self, incident: Incident) -> None:
        if incident.action == "rolled_back":
            self._close_all("recurred", incident.step, incident.attempt)
        if incident.action in ("rolled_back", "skipped", "halted"):
            self._open.append((incident.id, incident.attempt, incident.step))
        if incident.action == "halted":
            self._close_all("halted", incident.step, incident.attempt)

    def _close_all(self, outcome: str, step: int, attempt: int) -> None:
        for incident_id, began, _ in self._open:
            if self._journal is not None:
                self._journal.outcome(incident_id, outcome, step=step, steps=attempt - began)
        self._open = []

    def state_dict(self) -> dict[str, Any]:
        """Counters, open incidents and what is usual for each layer."""
        return {
            "incidents": self._incidents,
            "open": [list(entry) for entry in self._open],
            "last_kind": self._last_kind,
            "excluded_ranks": list(self._excluded_ranks),
            "window": [dict(row) for row in self._window],
            "layers": self.layers.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self._incidents = int(state["incidents"])
        self._open = [(int(i), int(a), int(s)) for i, a, s in state["open"]]
        self._last_kind = str(state["last_kind"])
        self._excluded_ranks = [int(rank) for rank in state.get("excluded_ranks", [])]
        self._window = deque(state["window"], maxlen=WINDOW_ATTEMPTS)
        self.layers.load_state_dict(state["layers"])


def _told(evidence: Evidence) -> tuple[Verdict, str]:
    """Verdict and reason as an incident tells them: also what was put right before it could do harm."""
    verdict, agreed, fault = evidence.verdict, evidence.agreed, evidence.fault
    if fault is not None:
        ranks = ", ".join("unknown" if rank < 0 else str(rank) for rank in fault.ranks)
        if not fault.hardware:
            return fault.verdict, f"the data of rank {ranks} stays bad: its share is left out"
        reason = f"computed again, the batch gave another result on rank {ranks}: a hardware fault"
        return fault.verdict, reason if verdict.kind == "ok" else f"{reason}; {evidence.decision.reason}"
    if agreed.dropped_micro_batches and verdict.kind == "ok":
        reason = (
            f"{agreed.dropped_micro_batches} of {agreed.micro_batches} micro-batches not finite: left out"
        )
        return Verdict("nonfinite", "loss", math.inf, verdict.baseline), reason
    return verdict, evidence.decision.reason


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
