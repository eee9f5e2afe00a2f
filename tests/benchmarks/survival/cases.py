"""The faults, and what a correct incident names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from survival.tasks import Task

STEPS = 160
"""Optimizer steps of a run."""
AT = 80
"""Step of most faults: the run is stable, and half of it remains for recovery."""
BURST, DRIFT = 8, 60
SHARD = 200


@dataclass(frozen=True, slots=True)
class Signs:
    """How a fault shows: the signals, whether they are finite (None: either), and whether hardware failed."""

    signals: tuple[str, ...]
    finite: bool | None = True
    hardware: bool = False


IN_THE_LOSS = Signs(("loss", "grad_norm"))
NOT_FINITE = Signs(("loss", "grad_norm"), finite=False)
IN_THE_GRADIENT = Signs(("grad_norm",))
FLIPPED_GRADIENT = Signs(("grad_norm",), finite=None, hardware=True)
FLIPPED_WEIGHT = Signs(("update_norm",), finite=None)
FLIPPED_MOMENT = Signs(("update_norm", "loss", "buffers"), finite=None)
IN_THE_WEIGHTS = Signs(("update_norm", "loss"))
IN_THE_BUFFERS = Signs(("buffers",), hardware=True)


@dataclass(frozen=True, slots=True)
class Case:
    """One fault.

    Attributes:
        faults: as a spec has them.
        steps: optimizer steps of the run.
        lr_factor: on the learning rate, from the start.
        rank: which an incident should name first; None where all ranks are hit.
        layer: which an incident should name among the first; None where there is no such.
        shows: how an incident should say that the fault showed.
        first_step: of the first fault; None where there is none.
    """

    name: str
    faults: tuple[dict[str, Any], ...] = ()
    steps: int = STEPS
    lr_factor: float = 1.0
    rank: int | None = None
    layer: str | None = None
    shows: Signs | None = None

    @property
    def first_step(self) -> int | None:
        """Of the first fault."""
        return min((int(fault["step"]) for fault in self.faults), default=None)


def cases(task: Task) -> list[Case]:
    """All cases that the task can suffer."""
    layer = task.layer
    poisoned = {"kind": "poisoned_batch", "factor": 1e4}
    rank1 = {"rank": 1}
    rate = {"kind": "lr_spike", "factor": 1e3}
    scaled = {"kind": "scaled_gradient", "factor": 1e4, "parameter": layer}
    every = [
        Case("clean"),
        Case("poisoned batch", ({**poisoned, "step": AT},), shows=IN_THE_LOSS),
        Case("label noise burst", ({"kind": "label_noise", "step": AT, "times": BURST},), shows=IN_THE_LOSS),
        Case("NaN on one rank", ({"kind": "nan_loss", "step": AT, **rank1},), rank=1, shows=NOT_FINITE),
        Case(
            "infinite activations",
            ({"kind": "infinite_activation", "step": AT, "parameter": layer, **rank1},),
            rank=1,
            shows=NOT_FINITE,
        ),
        Case(
            "scaled gradient",
            ({**scaled, "step": AT, **rank1},),
            rank=1,
            layer=layer,
            shows=IN_THE_GRADIENT,
        ),
        Case(
            "bit flip in a weight",
            ({"kind": "bitflip_weight", "step": AT, "parameter": layer},),
            layer=layer,
            shows=FLIPPED_WEIGHT,
        ),
        Case(
            "bit flip in a gradient",
            ({"kind": "bitflip_gradient", "step": AT, "parameter": layer, **rank1},),
            rank=1,
            layer=layer,
            shows=FLIPPED_GRADIENT,
        ),
        Case(
            "bit flip in a moment",
            ({"kind": "bitflip_moment", "step": AT, "parameter": layer},),
            layer=layer,
            shows=FLIPPED_MOMENT,
        ),
        Case("learning-rate spike", ({**rate, "step": AT},), shows=IN_THE_WEIGHTS),
        Case(
            "corrupt shard", ({**poisoned, "step": AT, "times": SHARD, **rank1},), rank=1, shows=IN_THE_LOSS
        ),
        Case(
            "slow drift",
            ({"kind": "lr_drift", "step": AT, "times": DRIFT, "factor": 1.08},),
            shows=IN_THE_WEIGHTS,
        ),
        Case("learning rate too high", lr_factor=50.0),
        Case("fault in warm-up", ({**poisoned, "step": 3},), shows=IN_THE_LOSS),
        Case(
            "fault during recovery",
            ({**rate, "step": AT}, {**scaled, "step": AT + 2, **rank1}),
            shows=IN_THE_WEIGHTS,
        ),
        Case("two faults at once", ({**poisoned, "step": AT}, {**rate, "step": AT}), shows=IN_THE_LOSS),
        Case(
            "a rank bad again and again",
            tuple({**scaled, "step": step, **rank1} for step in range(60, 140, 10)),
            rank=1,
            layer=layer,
            shows=IN_THE_GRADIENT,
        ),
    ]
    if task.buffers is not None:
        fault = {"kind": "poisoned_buffers", "step": AT, "parameter": task.buffers, "factor": 1e6}
        every.append(Case("poisoned BatchNorm statistics", (fault,), shows=IN_THE_BUFFERS))
    return every
