"""Optimizers and learning-rate schedules of a spec, from torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from jobs.spec_sections import OptimizerSpec, ScheduleSpec

DecayOn = Literal["auto", "all", "weights"]


def build_optimizer(
    spec: OptimizerSpec, parameters: Iterable[Tensor], *, decay_on: DecayOn = "all"
) -> Optimizer:
    """The optimizer of the spec over ``parameters``; the fused implementation.

    Args:
        spec: algorithm and rates.
        parameters: those that take no gradient are left out.
        decay_on: ``weights`` spares what has fewer than two dimensions, that is norms and biases, the weight
            decay; ``auto`` does so for adamw.
    """
    trained = _groups([p for p in parameters if p.requires_grad], spec, decay_on)
    if spec.name == "sgd":
        return torch.optim.SGD(
            trained,
            lr=spec.lr,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            nesterov=spec.nesterov,
            fused=True,
        )
    kind = torch.optim.AdamW if spec.name == "adamw" else torch.optim.Adam
    return kind(trained, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=True)


def _groups(trained: list[Tensor], spec: OptimizerSpec, decay_on: DecayOn) -> list[dict[str, Any]]:
    weights_only = decay_on == "weights" or (decay_on == "auto" and spec.name == "adamw")
    spared = [p for p in trained if p.ndim < 2]
    if not weights_only or not spec.weight_decay or not spared:
        return [{"params": trained}]
    return [{"params": [p for p in trained if p.ndim >= 2]}, {"params": spared, "weight_decay": 0.0}]


def build_schedule(spec: ScheduleSpec, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The schedule of the spec: a function of the step alone, so that it resumes and rewinds exactly."""
    return LambdaLR(optimizer, schedule_factor(spec, total_steps))


def schedule_factor(spec: ScheduleSpec, total_steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied with after ``step`` steps: a linear warm-up, then the decay."""

    def factor(step: int) -> float:
        if step < spec.warmup_steps:
            return (step + 1) / spec.warmup_steps
        progress = (step - spec.warmup_steps) / max(1, total_steps - spec.warmup_steps)
        return _DECAYS[spec.name](min(1.0, progress))

    return factor


_DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
