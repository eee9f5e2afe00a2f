"""What goes wrong, and what a good witness would say about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from survival.tasks import Task

STEPS = 160
"""Optimizer steps of a run."""
AT = 80
"""Where most faults strike: the run has settled, and half of it is left to recover in."""
BURST, DRIFT = 8, 60
SHARD = 200


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that goes wrong.

    Attributes:
        faults: as a spec has them.
        steps: optimizer steps of the run.
        lr_factor: on the learning rate, from the start.
        transient: whether it leaves nothing behind when the bad step is not taken: then the run can end as
            the clean one does, to the bit.
        rank: which an incident should name first; None where all ranks are hit.
        layer: which an incident should name among the first; None where there is no such.
        first_step: of the first fault; None where there is none.
    """

    name: str
    faults: tuple[dict[str, Any], ...] = ()
    steps: int = STEPS
    lr_factor: float = 1.0
    transient: bool = False
    rank: int | None = None
    layer: str | None = None

    @property
    def first_step(self) -> int | None:
        """Of the first fault."""
        return min((int(fault["step"]) for fault in self.faults), default=None)


def cases(task: Task) -> list[Case]:
    """All cases that the task can suffer."""
    layer = task.layer
    poisoned = {"kind": "poisoned_batch", "factor": 1e4}
    rank1 = {"rank": 1}
    scaled = {"kind": "scaled_gradient", "factor": 1e4, "parameter": layer}
    every = [
        Case("clean"),
        Case("poisoned batch", ({**poisoned, "step": AT},)),
        Case("label noise burst", ({"kind": "label_noise", "step": AT, "times": BURST},)),
        Case("NaN on one rank", ({"kind": "nan_loss", "step": AT, **rank1},), rank=1),
        Case(
            "infinite activations",
            ({"kind": "infinite_activation", "step": AT, "parameter": layer, **rank1},),
            rank=1,
        ),
        Case("scaled gradient", ({**scaled, "step": AT, **rank1},), rank=1, layer=layer),
        Case(
            "bit flip in a weight", ({"kind": "bitflip_weight", "step": AT, "parameter": layer},), layer=layer
        ),
        Case(
            "bit flip in a gradient",
            ({"kind": "bitflip_gradient", "step": AT, "parameter": layer, **rank1},),
            transient=True,
            rank=1,
            layer=layer,
        ),
        Case(
            "bit flip in a moment", ({"kind": "bitflip_moment", "step": AT, "parameter": layer},), layer=layer
        ),
        Case("learning-rate spike", ({"kind": "lr_spike", "step": AT, "factor": 1e3},)),
        Case("corrupt shard", ({**poisoned, "step": AT, "times": SHARD, **rank1},), steps=STEPS, rank=1),
        Case("slow drift", ({"kind": "lr_drift", "step": AT, "times": DRIFT, "factor": 1.08},)),
        Case("learning rate too high", lr_factor=50.0),
        Case("fault in warm-up", ({**poisoned, "step": 3},)),
        Case(
            "fault during recovery",
            ({"kind": "lr_spike", "step": AT, "factor": 1e3}, {**scaled, "step": AT + 2, **rank1}),
        ),
        Case(
            "two faults at once", ({**poisoned, "step": AT}, {"kind": "lr_spike", "step": AT, "factor": 1e3})
        ),
        Case(
            "a rank bad again and again",
            tuple({**scaled, "step": step, **rank1} for step in range(60, 140, 10)),
            rank=1,
            layer=layer,
        ),
    ]
    if task.buffers is not None:
        fault = {"kind": "poisoned_buffers", "step": AT, "parameter": task.buffers, "factor": 1e6}
        every.append(Case("poisoned BatchNorm statistics", (fault,)))
    return every
