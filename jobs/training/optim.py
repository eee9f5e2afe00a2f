"""Optimizers and learning-rate schedules of a spec, from torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from guard.observe.shards import is_distributed
from jobs.spec.job_spec import JobSpec
from jobs.spec.optim import OptimizerSpec, ScheduleSpec
from jobs.training.by_path import optimizer_by_path, schedule_by_path
from jobs.training.muon import MuonWithAdamW

DecayOn = Literal["auto", "all", "weights"]


def build_optimizer(
    spec: OptimizerSpec,
    parameters: Iterable[Tensor],
    *,
    decay_on: DecayOn = "all",
    tables: Iterable[Tensor] = (),
) -> Optimizer:
    """The optimizer of the spec over ``parameters``; the fused implementation where there is one.

    Args:
        spec: algorithm and rates.
        parameters: those that require no gradient are ignored.
        decay_on: ``weights`` exempts parameters with fewer than two dimensions (norms, biases) from weight
            decay; ``auto`` does so for adamw and muon.
        tables: two-dimensional, but not updated by muon; see ``tables_of``.
    """
    trained = [p for p in parameters if p.requires_grad]
    if spec.name == "muon":
        return _muon(spec, trained, decay_on, {id(p) for p in tables})
    groups = _groups(trained, spec, decay_on)
    if ":" in spec.name:
        return optimizer_by_path(spec, groups)
    lr, decay = spec.lr, spec.weight_decay
    if spec.name == "sgd":
        momentum, nesterov = spec.momentum, spec.nesterov
        fused = not any(map(is_distributed, trained))  # of DTensors torch fuses Adam and AdamW alone
        return SGD(groups, lr=lr, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=fused)
    kind = AdamW if spec.name == "adamw" else Adam
    return kind(groups, lr=lr, betas=spec.betas, weight_decay=decay, fused=True)


def tables_of(model: nn.Module) -> list[Tensor]:
    """Embeddings and the last linear layer: each row belongs to a token or class, so that an orthogonal step
    is meaningless (Jordan et al., "Muon: An optimizer for hidden layers ...", 2024)."""
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return [*embeddings, *linear[-1:]]


def _muon(spec: OptimizerSpec, trained: list[Tensor], decay_on: DecayOn, tables: set[int]) -> Optimizer:
    inner = [p for p in trained if p.ndim == 2 and id(p) not in tables]
    chosen = {id(p) for p in inner}
    return MuonWithAdamW(
        [{"params": inner}] if inner else [],
        _groups([p for p in trained if id(p) not in chosen], spec, decay_on),
        lr=spec.lr,
        momentum=spec.momentum,
        betas=spec.betas,
        weight_decay=spec.weight_decay,
    )


def _groups(trained: list[Tensor], spec: OptimizerSpec, decay_on: DecayOn) -> list[dict[str, Any]]:
    weights_only = decay_on == "weights" or (decay_on == "auto" and spec.name in ("adamw", "muon"))
    spared = [p for p in trained if p.ndim < 2]
    if not weights_only or not spec.weight_decay or not spared:
        return [{"params": trained}] if trained else []
    weights = [p for p in trained if p.ndim >= 2]
    return [*([{"params": weights}] if weights else []), {"params": spared, "weight_decay": 0.0}]


def build_schedule(spec: ScheduleSpec, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The schedule of the spec; those by name are functions of the step alone, and resume exactly."""
    if ":" in spec.name:
        return schedule_by_path(spec, optimizer, total_steps)
    return LambdaLR(optimizer, schedule_factor(spec, total_steps))


def check_by_path(spec: JobSpec, total_steps: int) -> None:
    """Makes what the spec names by import path for one small matrix: what is wrong shows before a start.

    Raises:
        SpecError: optimizer or schedule is not there, does not take its arguments, or cannot be stepped.
    """
    if ":" in spec.optimizer.name or ":" in spec.schedule.name:
        optimizer = build_optimizer(spec.optimizer, [nn.Parameter(torch.zeros(2, 2))])
        build_schedule(spec.schedule, optimizer, total_steps)


def schedule_factor(spec: ScheduleSpec, total_steps: int) -> Callable[[int], float]:
    """The factor of the learning rate after ``step`` steps: a linear warm-up, then the decay."""
    fall = spec.fall_steps(total_steps)
    begin = total_steps - fall

    def factor(step: int) -> float:
        if step < spec.warmup_steps:
            return (step + 1) / spec.warmup_steps
        progress = min(1.0, (step - begin) / fall) if fall and step > begin else 0.0
        return spec.final + (1.0 - spec.final) * _FALLS[spec.name](progress)

    return factor


_FALLS: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "wsd": lambda progress: 1.0 - progress,
}
