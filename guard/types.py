"""The facts of one step, from what was observed to what was done. Plain data; who makes it imports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from guard.records import Incident

Kind = Literal["ok", "suspect", "spike", "nonfinite", "drift", "vanishing"]
Signal = Literal["loss", "grad_norm", "update_norm", "buffers"]
Rung = Literal["apply", "clip", "skip", "rollback", "halt"]
Action = Literal["applied", "clipped", "skipped", "rolled_back"]
Source = Literal["memory", "disk"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observation:
    """What one pass over the gradients says.

    ``layer_norms`` has one float64 L2 norm for each parameter that takes gradients, in the model's order;
    a parameter without a gradient in this step has 0.
    """

    grad_norm: float
    layer_norms: NDArray[np.float64]

    def scaled(self, factor: float) -> Observation:
        """That of gradients ``factor`` times as large."""
        return Observation(self.grad_norm * factor, self.layer_norms * factor)


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all ranks know of one step; arrays have one entry a rank.

    ``losses`` is each rank's mean loss over its micro-batches, ``local_norms`` each rank's gradient norm
    before the all-reduce one step ago (NaN where it was not taken). Where there are several micro-batches,
    those whose loss is not finite are left out of the means and counted in ``dropped_micro_batches``.
    """

    loss: float
    """Mean over ranks; not finite if any rank's is not."""
    losses: NDArray[np.float64]
    local_norms: NDArray[np.float64]
    stop: bool
    checkpoint: bool = False
    buffer_jump: float | None = None
    """The largest over ranks; None where the model has no floating-point buffers."""
    micro_batches: int = 1
    """Of all ranks together."""
    dropped_micro_batches: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the detector makes of one step.

    ``score`` is the excess in robust standard deviations, with ``sigmas`` as threshold; ``baseline`` is what
    it exceeds, in the signal's own unit, None while there is too little history.
    """

    kind: Kind
    signal: Signal = "loss"
    score: float = 0.0
    baseline: float | None = None


OK = Verdict("ok", "loss", 0.0, None)


@dataclass(frozen=True, slots=True)
class Decision:
    """The rung of the ladder for one step, and why."""

    rung: Rung
    reason: str


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


@dataclass(frozen=True, slots=True)
class Correction:
    """A batch that was put right before it could do harm: on which ranks, and what it looked like before.

    ``hardware``: it gave another result the second time; else the ranks' data is bad, and was left out.
    """

    ranks: tuple[int, ...]
    verdict: Verdict
    value: float
    layer_norms: NDArray[np.float64]
    hardware: bool = True


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one step attempt, equal on every rank."""

    attempt: int
    step: int
    agreed: Agreed
    grad_norm: float
    layer_norms: NDArray[np.float64]
    verdict: Verdict
    decision: Decision
    clip: Plan
    learning_rate: float
    update_norm: float | None = None
    ratios: dict[str, float] | None = None
    fault: Correction | None = None
    layer: int | None = None

    @property
    def faulty_ranks(self) -> list[int]:
        """Ranks whose hardware gave another result the second time; -1 is one that cannot be told."""
        return list(self.fault.ranks) if self.fault is not None and self.fault.hardware else []

    @property
    def excluded_ranks(self) -> list[int]:
        """Ranks without whose share the batch goes on."""
        return list(self.fault.ranks) if self.fault is not None and not self.fault.hardware else []

    @property
    def clean(self) -> bool:
        """Whether nothing was wrong with the step that is applied."""
        return self.verdict.kind == "ok"


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
    source: Source = "memory"


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one guarded step did.

    ``step`` counts the optimizer steps applied in the history that stands: a skip does not advance it, a
    rollback sets it back. ``attempt`` counts calls of ``guard.step`` and only grows. ``grad_norm`` is the
    global norm before clipping, ``loss`` the mean over ranks. ``local_norms`` (one a rank) are those of the
    attempt before. ``update_norm`` is the mean distance of the weights per step, where it was measured.
    ``excluded_ranks`` are ranks without whose share of the batch the step was applied. ``pending`` marks the
    answer of a deferred guard that has nothing to report yet. ``stop`` and ``checkpoint``: a rank requested
    it.
    """

    step: int
    attempt: int
    action: Action
    loss: float
    grad_norm: float
    clip_coef: float
    clip_threshold: float | None
    verdict: Verdict
    learning_rate: float
    guard_seconds: float
    rolled_back_to: int | None = None
    incident: Incident | None = None
    stop: bool = False
    checkpoint: bool = False
    overflow: bool = False
    local_norms: list[float] | None = None
    recovery: dict[str, float] = field(default_factory=dict)
    update_norm: float | None = None
    buffer_jump: float | None = None
    excluded_ranks: list[int] = field(default_factory=list)
    pending: bool = False

    @property
    def applied(self) -> bool:
        """Whether the weights moved forward in this step."""
        return self.action in ("applied", "clipped") and not self.pending
