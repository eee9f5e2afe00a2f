"""Incidents as they lie in `incidents.jsonl`, each joined to its outcome."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.report.formats import as_float, as_int, as_text


@dataclass(frozen=True, slots=True)
class LayerEvidence:
    """One layer at the incident; `growth` is its norm over its usual one."""

    name: str
    norm: float | None
    share: float | None
    growth: float | None


@dataclass(frozen=True, slots=True)
class FirstLayer:
    """The layer that left its level before the incident, and how many attempts before."""

    name: str
    growth: float
    attempts_before: int


@dataclass(frozen=True, slots=True)
class RankEvidence:
    """One rank at the incident."""

    rank: int
    loss: float | None
    local_norm: float | None
    nonfinite: bool
    share: float | None


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One of the attempts that led up to the incident."""

    attempt: int
    step: int | None
    loss: float | None
    grad_norm: float | None


@dataclass(frozen=True, slots=True)
class CooldownInfo:
    """What was changed after the rollback, and until when."""

    lr_scale: float | None
    weight_decay_scale: float | None
    anchor_l2: float | None
    l1: float | None
    until_step: int | None
    data: str


@dataclass(frozen=True, slots=True)
class IncidentOutcome:
    """How it went on: `recovered`, `recurred` or `halted`."""

    kind: str
    step: int | None
    steps: int | None


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident; None where the file does not say.

    `would` is what a guard that only watches left undone.
    """

    id: int
    attempt: int | None
    step: int | None
    verdict: str
    signal: str
    value: float | None
    score: float | None
    baseline: float | None
    action: str
    rolled_back_to: int | None
    steps_lost: int | None
    seconds: float | None
    reason: str = ""
    would: str = ""
    moved_first: str = ""
    faulty_ranks: tuple[int, ...] = ()
    excluded_ranks: tuple[int, ...] = ()
    dropped_micro_batches: int = 0
    window: tuple[WindowRow, ...] = ()
    layers: tuple[LayerEvidence, ...] = ()
    ranks: tuple[RankEvidence, ...] = ()
    samples: tuple[str, ...] = ()
    recovery: CooldownInfo | None = None
    outcome: IncidentOutcome | None = None
    first_layer: FirstLayer | None = None

    @property
    def rolled_back(self) -> bool:
        return self.action == "rolled_back"

    @property
    def halted(self) -> bool:
        outcome = self.outcome.kind if self.outcome else ""
        return self.action in {"halt", "halted"} or outcome == "halted"


def join_outcomes(rows: Iterable[Mapping[str, Any]]) -> list[Incident]:
    """Incidents in the order of the file; an outcome belongs to the latest incident of its number."""
    incidents: list[Incident] = []
    place: dict[int, int] = {}
    for row in rows:
        if row.get("type") == "outcome":
            index = place.get(as_int(row.get("incident")) or 0)
            if index is not None:
                incidents[index] = replace(incidents[index], outcome=parse_outcome(row))
        elif row.get("type") == "incident":
            incident = parse_incident(row, number=len(incidents) + 1)
            place[incident.id] = len(incidents)
            incidents.append(incident)
    return incidents


def parse_incident(row: Mapping[str, Any], number: int = 1) -> Incident:
    """`number` stands in where the row has no id."""
    return Incident(
        id=_or(as_int(row.get("id")), number),
        attempt=as_int(row.get("attempt")),
        step=as_int(row.get("step")),
        verdict=as_text(row.get("verdict")),
        signal=as_text(row.get("signal")),
        value=as_float(row.get("value")),
        score=as_float(row.get("score")),
        baseline=as_float(row.get("baseline")),
        action=as_text(row.get("action")),
        rolled_back_to=as_int(row.get("rolled_back_to")),
        steps_lost=as_int(row.get("steps_lost")),
        seconds=as_float(row.get("seconds")),
        reason=as_text(row.get("reason")),
        would=as_text(row.get("would")),
        moved_first=_mover(row.get("moved_first")),
        faulty_ranks=_integers(row.get("faulty_ranks")),
        excluded_ranks=_integers(row.get("excluded_ranks")),
        dropped_micro_batches=_or(as_int(row.get("dropped_micro_batches")), 0),
        window=tuple(_window_row(item, index) for index, item in enumerate(_rows(row, "window"))),
        layers=tuple(_layer(item) for item in _rows(row, "layers")),
        ranks=tuple(_rank(item, index) for index, item in enumerate(_rows(row, "ranks"))),
        samples=_samples(row.get("samples")),
        recovery=_recovery(row.get("recovery")),
    )


def parse_outcome(row: Mapping[str, Any]) -> IncidentOutcome:
    return IncidentOutcome(as_text(row.get("outcome")), as_int(row.get("step")), as_int(row.get("steps")))


def _mover(value: Any) -> str:
    return as_text(value.get("signal")) if isinstance(value, Mapping) else ""


def _integers(values: Any) -> tuple[int, ...]:
    found = [as_int(value) for value in values] if isinstance(values, list) else []
    return tuple(value for value in found if value is not None)


def _rows(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    items = row.get(key)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _window_row(row: Mapping[str, Any], index: int) -> WindowRow:
    return WindowRow(
        attempt=_or(as_int(row.get("attempt")), index),
        step=as_int(row.get("step")),
        loss=as_float(row.get("loss")),
        grad_norm=as_float(row.get("grad_norm")),
    )


def _layer(row: Mapping[str, Any]) -> LayerEvidence:
    return LayerEvidence(
        name=as_text(row.get("name"), "unnamed"),
        norm=as_float(row.get("norm")),
        share=as_float(row.get("share")),
        growth=as_float(row.get("growth")),
    )


def _rank(row: Mapping[str, Any], index: int) -> RankEvidence:
    return RankEvidence(
        rank=_or(as_int(row.get("rank")), index),
        loss=as_float(row.get("loss")),
        local_norm=as_float(row.get("local_norm")),
        nonfinite=row.get("nonfinite") is True,
        share=as_float(row.get("share")),
    )


def _samples(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value[:64]) if isinstance(value, list) else ()


def _recovery(row: Any) -> CooldownInfo | None:
    if not isinstance(row, Mapping):
        return None
    return CooldownInfo(
        lr_scale=as_float(row.get("lr_scale")),
        weight_decay_scale=as_float(row.get("weight_decay_scale")),
        anchor_l2=as_float(row.get("anchor_l2")),
        l1=as_float(row.get("l1")),
        until_step=as_int(row.get("until_step")),
        data=as_text(row.get("data")),
    )


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
