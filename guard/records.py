"""What is stored of a run: a row of metrics.jsonl for each attempt, one of incidents.jsonl for each event.

Every reader and writer takes names, units and types from here: a column is added in this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple, get_origin, get_type_hints

from guard.rows import Row, stored

Kind = Literal["ok", "suspect", "spike", "nonfinite", "drift", "vanishing", "warning"]
Signal = Literal["loss", "grad_norm", "update_norm", "buffers", "replicas"]
Action = Literal["applied", "clipped", "skipped", "rolled_back"]
Source = Literal["memory", "disk"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the detector makes of one step."""

    kind: Kind = stored("ok", key="verdict")
    signal: Signal = stored("loss")
    score: float = stored(0.0, unit="robust standard deviations")
    """The excess over the baseline; ``sigmas`` is the threshold."""
    baseline: float | None = stored(None, unit="that of the signal", unstored=True)
    """What the score is relative to; None while there is too little history."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong with the step: a warning is of steps to come."""
        return self.kind in ("ok", "warning")


OK = Verdict("ok", "loss", 0.0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord(Row):
    """One step attempt: a row of metrics.jsonl.

    ``gauge`` is the name and the help text of the Prometheus gauge that shows the last finite value.
    """

    time: float = stored(math.nan, unit="unix seconds")
    attempt: int = stored(0)
    """Counts calls of ``guard.step`` and only grows."""
    step: int = stored(0)
    """Optimizer steps applied in the history that stands: a skip leaves it, a rollback sets it back."""
    action: Action = stored("applied")
    loss: float = stored(math.nan, gauge=("loss", "Training loss, mean over ranks, last finite value."))
    """Mean over ranks."""
    grad_norm: float = stored(
        math.nan, gauge=("grad_norm", "Global gradient norm before clipping, last finite value.")
    )
    """Global L2 norm before clipping."""
    clip_coef: float = stored(
        1.0, gauge=("clip_coefficient", "Factor on the last gradient; 1 where it was not clipped.")
    )
    """Factor on the gradient; 1 where it was not clipped."""
    clip_threshold: float | None = stored(None)
    """Norm to which the gradient is clipped; None while there is no limit."""
    verdict: Verdict = stored(OK, flat=True)
    learning_rate: float = stored(
        math.nan, key="lr", gauge=("learning_rate", "Learning rate of the first parameter group.")
    )
    """Of the first parameter group."""
    step_seconds: float = stored(math.nan, unit="s")
    """From the end of the attempt before to the end of this one."""
    guard_seconds: float = stored(math.nan, unit="s")
    """What the guard adds to the attempt."""
    rolled_back_to: int | None = stored(None, unit="steps")
    update_norm: float | None = stored(
        None, sparse=True, gauge=("update_norm", "Norm of the last parameter update, last finite value.")
    )
    """Mean distance that the weights moved per step, on the attempts on which it is measured."""
    update_ratio: float | None = stored(
        None,
        sparse=True,
        gauge=("update_ratio", "Norm of the last update over that of the weights."),
    )
    """``update_norm`` over the global norm of the weights, where it is measured; dimensionless."""
    buffer_jump: float | None = stored(
        None,
        sparse=True,
        gauge=("buffer_jump", "How far the last forward moved the buffers, over their norms."),
    )
    """How far the last forward moved the buffers, in units of their norms; the largest over ranks."""
    alarm_factor: float | None = stored(
        None,
        sparse=True,
        gauge=("loss_alarm_factor", "How many times its level the loss must reach for an alarm."),
    )
    """How many times its level the loss must reach for an alarm, every 25 attempts; a smaller rise is not
    seen. None where the level is not positive."""
    local_norms: list[float] | None = stored(None)
    """One a rank, before the all-reduce of the attempt before; NaN where not measured."""
    recovery: dict[str, float] = stored(dict, key="regularization")
    """The measures of a cooldown in force: ``lr_scale``, ``weight_decay_scale``, ``anchor_l2``, ``l1``."""
    rate_factor: float = stored(
        1.0,
        sparse=True,
        gauge=("rate_factor", "What the learning rate is multiplied by, as it was or became too high."),
    )
    """What the learning rate is multiplied by, since it was too high from the start, or as it has become too
    high; 1 where it is not."""
    rate_advice: float = stored(
        1.0,
        sparse=True,
        gauge=("rate_advice", "What the learning rate should be multiplied by, where the guard may not."),
    )
    """What the learning rate should be multiplied by, as far as the guard has seen; 1 where it is right, or
    where the guard itself changes it."""
    attention_logit: float | None = stored(
        None, sparse=True, gauge=("attention_logit", "The largest attention logit, where it is measured.")
    )
    """The largest attention logit of all layers, on the attempts on which it is measured."""
    excluded_ranks: list[int] = stored(list, sparse=True)
    """Ranks without whose part of the batch the step was applied, because their data stays bad."""
    excluded_samples: list[int] = stored(list, sparse=True)
    """Bad samples without which the step was applied."""
    faulty_ranks: list[int] = stored(list, sparse=True)
    """Ranks whose result differed when the batch was computed again; -1 is unknown."""
    dropped_micro_batches: int = stored(0, sparse=True)
    """Micro-batches whose loss was not finite."""
    layers: dict[str, float] | None = stored(None, sparse=True)
    """Gradient norm of each parameter before clipping; on some attempts only."""

    @property
    def anomalous(self) -> bool:
        """Whether anything was wrong with the attempt, corrected or not."""
        excluded = self.excluded_ranks or self.excluded_samples
        corrected = excluded or self.faulty_ranks or self.dropped_micro_batches
        return self.verdict.kind != "ok" or bool(corrected)


class Column(NamedTuple):
    """One value of each row of metrics.jsonl."""

    name: str
    unit: str
    kind: Literal["number", "text"]


def _columns(record: type) -> list[Column]:
    hints, found = get_type_hints(record), list[Column]()
    for place in fields(record):
        hint, metadata = hints[place.name], place.metadata
        name, unit = metadata["key"] or place.name, metadata["unit"]
        if metadata.get("flat"):
            found += _columns(hint)
        elif hint in (float, int, float | None, int | None) and not metadata.get("unstored"):
            found.append(Column(name, unit, "number"))
        elif get_origin(hint) is Literal:
            found.append(Column(name, unit, "text"))
    return found


COLUMNS = {column.name: column for column in _columns(StepRecord)}
"""The flat columns of metrics.jsonl, by name: what tables, charts and streams can show."""
NUMBERS = tuple(name for name, column in COLUMNS.items() if column.kind == "number")
GAUGES = {f.name: f.metadata["gauge"] for f in fields(StepRecord) if "gauge" in f.metadata}
"""Name and help of the Prometheus gauge of a field of ``StepRecord``."""


@dataclass(frozen=True, slots=True)
class WindowRow(Row):
    """One of the attempts that led up to an incident."""

    attempt: int
    step: int | None
    loss: float | None = None
    grad_norm: float | None = None
    update_norm: float | None = None
    ratios: dict[str, float] | None = None
    """How far each signal was from its baseline; 1 is anomalous."""
    learning_rate: float | None = stored(None, key="lr")
    """Of the update, or of the one that was not made."""


@dataclass(frozen=True, slots=True)
class LayerEvidence(Row):
    """One parameter at an incident."""

    name: str
    norm: float | None = None
    share: float | None = None
    """Of the squared global norm."""
    growth: float | None = None
    """Norm over baseline norm."""


@dataclass(frozen=True, slots=True)
class MovedWeight(Row):
    """How far one parameter moved since it was measured before."""

    name: str
    distance: float | None = None
    share: float | None = None
    """Of the squared global distance."""


@dataclass(frozen=True, slots=True)
class RankEvidence(Row):
    """One rank at an incident."""

    rank: int
    loss: float | None = None
    local_norm: float | None = None
    nonfinite: bool = False
    share: float | None = None
    """Of the squared local norms, or of the losses where those were not measured."""


@dataclass(frozen=True, slots=True)
class SampleEvidence(Row):
    """One sample that made a batch bad."""

    sample: int
    """Its id."""
    rank: int
    loss: float | None = None
    """Of this sample alone."""
    grad_norm: float | None = None
    """The norm of its gradient, where the loss did not decide."""
    nonfinite: bool = False
    """It is not finite, or what was not finite is finite without it."""
    share: float | None = None
    """The part of the excess over the baseline that goes when the batch is computed without it."""
    content: str = ""
    """What it is, where the data cursor knows."""


@dataclass(frozen=True, slots=True)
class FirstMover(Row):
    """The signal that left its baseline first."""

    signal: str
    attempt: int | None = None
    ratio: float | None = None
    """Its distance from the baseline; 1 is anomalous."""


@dataclass(frozen=True, slots=True)
class CooldownInfo(Row):
    """What was changed after a rollback, and until when."""

    lr_scale: float | None = None
    """Everything together: the cooldown and ``rate_factor``."""
    rate_factor: float | None = None
    """For good, since the rate was too high from the start."""
    weight_decay_scale: float | None = None
    anchor_l2: float | None = None
    l1: float | None = None
    until_step: int | None = None
    data: str = ""
    """``advance`` or ``replay``."""


@dataclass(frozen=True, slots=True)
class IncidentOutcome(Row):
    """How an incident ended."""

    kind: str = stored("", key="outcome")
    """``recovered``, ``recurred``, ``halted``, or ``ended``: a condition that lasted is over."""
    step: int | None = None
    steps: int | None = None
    """Attempts from the incident to its end."""


@dataclass(frozen=True, slots=True)
class FirstLayer(Row):
    """The layer that left its baseline before the incident, and how many attempts before."""

    name: str
    growth: float
    attempts_before: int


@dataclass(frozen=True, slots=True)
class Incident(Row):
    """One event that the guard acted on, with its evidence: a row of incidents.jsonl.

    What the guard makes is complete. One that is read back has None where its row lacks a field.
    """

    id: int
    job: str
    time: float | None
    """Unix seconds."""
    attempt: int | None
    step: int | None
    verdict: str
    signal: str
    value: float | None
    """What the signal was."""
    score: float | None
    """Excess over the baseline, in robust standard deviations."""
    baseline: float | None
    action: str
    """``applied``, ``clipped``, ``skipped``, ``rolled_back`` or ``halted``."""
    reason: str
    rolled_back_to: int | None = None
    steps_lost: int | None = 0
    seconds: float | None = 0.0
    """Duration of the rollback, in seconds."""
    source: str | None = None
    """Where a rollback took the state from: ``memory`` or ``disk``."""
    would: str | None = None
    """What a guard in shadow mode would have done."""
    recovery: CooldownInfo | None = None
    learning_rate: float | None = None
    """Of this update, or of the one that was not made."""
    previous_learning_rate: float | None = None
    """Of the update before, which led to the weights that this attempt was computed with."""
    moved_first: FirstMover | None = None
    faulty_ranks: list[int] = field(default_factory=list)
    """Ranks whose result differed when the batch was computed again; -1 is unknown."""
    excluded_ranks: list[int] = field(default_factory=list)
    """Ranks without whose part of the batch the step was applied, because their data stays bad."""
    dropped_micro_batches: int = 0
    """Micro-batches whose loss was not finite."""
    window: list[WindowRow] = field(default_factory=list)
    """The last attempts up to this one."""
    layers: list[LayerEvidence] = field(default_factory=list)
    """The worst first."""
    moved: list[MovedWeight] = field(default_factory=list)
    """The farthest first: damage to a weight or a moment shows here, not in the gradient."""
    ranks: list[RankEvidence] = field(default_factory=list)
    """The worst first; of many ranks only those."""
    samples: list[int] = field(default_factory=list)
    """Ids of the global batch, where the data cursor has them."""
    bad_samples: list[SampleEvidence] = field(default_factory=list)
    """Those that made the batch bad, the worst first; found where ``guard.step`` got ``samples``."""
    excluded_samples: list[int] = field(default_factory=list)
    """Those without which the step was applied."""
    by_rate: bool = False
    """Whether the learning rate is tried, cut or restored (``rate: act``): the signal may be as usual."""
    anchor: str = stored("", unstored=True)
    """Unique in its journal, where ids may repeat; set by the reader, as the two below."""
    outcome: IncidentOutcome | None = stored(None, unstored=True)
    first_layer: FirstLayer | None = stored(None, unstored=True)

    @property
    def rolled_back(self) -> bool:
        return self.action == "rolled_back"

    @property
    def halted(self) -> bool:
        return self.action in {"halt", "halted"} or (
            self.outcome is not None and self.outcome.kind == "halted"
        )

    to_dict = Row.to_row
