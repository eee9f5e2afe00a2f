"""The facts of one step, from what was observed to what was done. Plain data; who makes it imports it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guard.records import Action, Incident, Source, StepRecord, Verdict
from guard.rows import stored

Rung = Literal["apply", "clip", "skip", "rollback", "halt"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observation:
    """The result of one pass over the gradients.

    ``layer_norms`` has one float64 L2 norm for each parameter that takes gradients, in the model's order;
    a parameter without a gradient in this step has 0.
    """

    grad_norm: float
    layer_norms: Floats

    def scaled(self, factor: float) -> Observation:
        """That of gradients ``factor`` times as large."""
        return Observation(self.grad_norm * factor, self.layer_norms * factor)

    def with_norm(self, norm: float | None) -> Observation:
        """With this global norm; itself where it is None."""
        return self if norm is None else Observation(norm, self.layer_norms)


class Movement(NamedTuple):
    """How far the weights moved since they were measured before."""

    per_step: float
    """Mean distance of one step."""
    per_lr: float | None
    """The whole distance over ``every_steps`` times the learning rate (``WindowRate``); None at rate 0."""
    ratio: float | None
    """``per_step`` over the norm of the weights; None while that is zero."""


class Travelled(NamedTuple):
    """How far the weights are from where they were."""

    distance: float
    """In units of the norm that they had there."""
    steps: int


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all ranks know of one step; arrays have one entry a rank.

    ``losses`` is each rank's mean loss over its micro-batches, ``local_norms`` each rank's gradient norm
    before the all-reduce one step ago (NaN where it was not taken). Where there are several micro-batches,
    those whose loss is not finite are dropped from the means and counted in ``dropped_micro_batches``.
    """

    loss: float
    """Mean over ranks; not finite if any rank's is not."""
    losses: Floats
    local_norms: Floats
    stop: bool
    checkpoint: bool = False
    changed: int = 0
    """On any rank the loop changed the weights between two steps: 1 for the first time, from 2 on again."""
    buffer_jump: float | None = None
    """The largest over ranks; None where the model has no floating-point buffers."""
    micro_batches: int = 1
    """Of all ranks together."""
    dropped_micro_batches: int = 0


@dataclass(frozen=True, slots=True)
class RateFinding:
    """What the first steps say about the rate.

    Attributes:
        factor: what the schedule's rate is to be multiplied by from now on.
        again: whether the run returns to its start for that.
        climb: what the loss did, in words.
        reason: the same, and what follows.
        named: how many times too high the rate probably is, from this climb alone.
        acts: whether that is done; else it is advice.
        replays: whether the batches come again too.
    """

    factor: float
    again: bool
    climb: str
    reason: str
    named: float = 1.0
    acts: bool = True
    replays: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The rung of the ladder for one step, and why."""

    rung: Rung
    reason: str
    recover: bool = False
    """A rollback that also cuts the rate and pulls to the healthy weights: moving on was not enough."""
    new_level: bool = False
    """The level has changed on purpose: it is relearned, and the step applied."""
    adopt: bool = False
    """The present weights are the new healthy state."""
    rate: RateFinding | None = None
    """The learning rate is too high for the start of the run, or was not after all."""
    verified: int | None = None
    """A rollback to a snapshot of this step at most, whose batches then come again: memory was damaged."""
    on_trial: bool = False
    """A spike that training makes itself is let through: nothing after it is healthy until it has ended."""

    @property
    def by_rate(self) -> bool:
        """Whether the learning rate is the reason."""
        return self.rate is not None and self.rate.acts and self.rate.reason == self.reason


@dataclass(frozen=True, slots=True)
class StepLimits:
    """From which loss, gradient norm and jump of the buffers on a step is skipped, and the norm it is clipped
    to; inf for none."""

    loss: float
    grad_norm: float
    jump: float
    clip: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How this step is to be clipped.

    Attributes:
        seen: the norms of the gradients.
        limit: what the global L2 norm is held to; None where it has no limit.
        factors: what each parameter's gradient is multiplied with before that; None for 1 throughout.
    """

    seen: Observation
    limit: float | None = None
    factors: Floats | None = None


class Damage(NamedTuple):
    """A tensor that differs between ranks on which it must be equal."""

    tensor: str
    """Its kind and name: ``weight 0.bias``."""
    ranks: tuple[int, ...]
    """Whose memory was damaged; empty where that is not known."""
    source: int
    """A rank that has it right, where ``ranks`` is known."""


@dataclass(frozen=True, slots=True)
class Correction:
    """A batch that was corrected before it was applied: on which ranks, and its values before.

    ``hardware``: the second computation gave another result; else the ranks' data is bad, and was excluded.
    Without ranks, the second computation had other random numbers, and shows no fault.
    """

    ranks: tuple[int, ...]
    verdict: Verdict
    value: float
    layer_norms: Floats
    hardware: bool = True
    samples: tuple[int, ...] = ()
    """Those without which the batch was computed again."""
    reason: str = ""
    """In words, where it is another than that of a batch."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one step attempt, equal on every rank."""

    attempt: int
    step: int
    agreed: Agreed
    grad_norm: float
    layer_norms: Floats
    verdict: Verdict
    decision: Decision
    clip: Plan
    learning_rate: float
    """Of the coming update, as planned."""
    previous_rate: float | None = None
    """Of the last update, as the optimizer used it."""
    moved: Movement | None = None
    ratios: dict[str, float] | None = None
    fault: Correction | None = None
    layer: int | None = None

    @property
    def update_norm(self) -> float | None:
        """Mean distance of one step, on the attempts on which it is measured."""
        return None if self.moved is None else self.moved.per_step

    @property
    def faulty_ranks(self) -> list[int]:
        """Ranks whose result differed when the batch was computed again; -1 is unknown."""
        return list(self.fault.ranks) if self.fault is not None and self.fault.hardware else []

    @property
    def excluded_ranks(self) -> list[int]:
        """Ranks without whose part of the batch the step is applied."""
        return list(self.fault.ranks) if self.fault is not None and not self.fault.hardware else []

    @property
    def excluded_samples(self) -> list[int]:
        """Samples without which the step is applied."""
        return [] if self.fault is None else list(self.fault.samples)

    @property
    def anomaly(self) -> Verdict | None:
        """What was wrong with the attempt, also where it was corrected in time; None where nothing was."""
        if self.fault is not None:
            return self.fault.verdict
        if self.verdict.kind != "ok":
            return self.verdict
        if self.agreed.dropped_micro_batches:
            return Verdict("nonfinite", "loss", math.inf, self.verdict.baseline)
        return None

    @property
    def clean(self) -> bool:
        """Whether nothing was wrong with the step that is applied; a warning is of steps to come."""
        return self.verdict.healthy and not self.decision.on_trial


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What was done: the action, where it led, what it cost beyond the optimizer's own step."""

    action: Action
    step: int
    rolled_back_to: int | None = None
    steps_lost: int = 0
    seconds: float = 0.0
    optimizer_seconds: float = 0.0
    clip_coef: float = 1.0
    learning_rate: float | None = None
    """As the optimizer used it; None where it made no update."""
    source: Source = "memory"
    overflow: bool = False
    """Of the scaled gradients; the loss scaler handles it."""
    found: str = ""
    """What was found meanwhile, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport(StepRecord):
    """What one guarded step did: its record, and what is not stored in its row.

    ``pending`` marks the answer of a deferred guard that has nothing to report yet. ``anomaly`` is what was
    wrong with the attempt: the verdict, or that of a batch that was corrected before it was applied. ``stop``
    and ``checkpoint``: a rank requested it.
    """

    incident: Incident | None = stored(None, unstored=True)
    anomaly: Verdict | None = stored(None, unstored=True)
    stop: bool = stored(False, unstored=True)
    checkpoint: bool = stored(False, unstored=True)
    overflow: bool = stored(False, unstored=True)
    pending: bool = stored(False, unstored=True)

    @property
    def applied(self) -> bool:
        """Whether the weights moved forward in this step."""
        return self.action in ("applied", "clipped") and not self.pending
