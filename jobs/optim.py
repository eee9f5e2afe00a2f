"""Optimizers and learning-rate schedules of a spec, from torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from jobs.spec_sections import OptimizerSpec, ScheduleSpec


def build_optimizer(spec: OptimizerSpec, parameters: Iterable[Tensor]) -> Optimizer:
    """The optimizer of the spec over ``parameters``; the fused implementation."""
    trained = [p for p in parameters if p.requires_grad]
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
