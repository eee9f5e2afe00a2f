"""Builds what one rank trains with, from the spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device, prepare_model
from torch import nn
from torch.optim import Optimizer

from guard import FaultInjector, GradientGuard, GuardMetrics
from guard.observe import unwrap
from guard.snapshot import Stateful
from jobs.checkpoint import Checkpoints
from jobs.data.cursor import DataCursor
from jobs.evaluate import StopWatcher
from jobs.exact import seed_generators, settle_buckets
from jobs.folder import JobFolder
from jobs.optim import build_optimizer, build_schedule
from jobs.progress import Progress
from jobs.spec import JobSpec
from jobs.workloads import load_workload
from jobs.workloads.base import Workload


@dataclass(frozen=True, slots=True)
class Run:
    """One rank's half of a training job: what the loop needs, ready to start or to continue."""

    spec: JobSpec
    workload: Workload
    model: nn.Module
    optimizer: Optimizer
    cursor: DataCursor
    faults: FaultInjector
    guard: GradientGuard
    checkpoints: Checkpoints
    progress: Progress
    device: torch.device
    rank: int
    world_size: int
    total_steps: int
    steps_per_epoch: int
    stop: StopWatcher

    @property
    def bare_model(self) -> nn.Module:
        """The model without its DDP wrapper."""
        return unwrap(self.model)

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        return self.spec.train.eval_every_epochs * self.steps_per_epoch


def build(spec: JobSpec, hub: Any) -> Run:
    """Makes all parts, wraps the model for DDP, and loads the job's newest checkpoint, if there is one."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    folder = JobFolder(spec.job_dir)
    seed_generators(spec.seed, rank)
    workload = load_workload(spec)
    cursor = DataCursor(workload.n_train, spec.data.batch_size, spec.seed)
    total_steps = spec.total_steps(workload.n_train)
    model = prepare_model(workload.build_model(), parallel_strategy_kwargs={"gradient_as_bucket_view": True})
    if world_size > 2:
        settle_buckets(model, workload, get_device())
    optimizer = build_optimizer(spec.optimizer, model.parameters())
    schedule = build_schedule(spec.schedule, optimizer, total_steps)
    faults = FaultInjector(spec.faults, model=model, optimizer=optimizer, rank=rank)
    metrics = GuardMetrics(job=spec.name, info=_info(spec, world_size))
    guard = GradientGuard(
        model,
        optimizer,
        spec.guard,
        scheduler=schedule,
        state={"data": cursor},
        metrics=metrics,
        journal=folder.incidents,
        job=spec.name,
    )
    progress = Progress(spec, folder, hub, guard, total_steps, rank=rank)
    parts: dict[str, Stateful] = {
        "model": unwrap(model),
        "optimizer": optimizer,
        "schedule": schedule,
        "cursor": cursor,
        "faults": faults,
        "guard": guard,
        "progress": progress,
    }
    checkpoints = Checkpoints(folder.checkpoints, parts)
    resumed = checkpoints.load_latest()
    undone = progress.rewind_files()
    if resumed is not None:
        progress.event("info", f"continuing from the checkpoint of step {resumed}")
    elif undone:
        progress.event("warning", "continuing from step 0: there is no checkpoint yet")
    return Run(
        spec=spec,
        workload=workload,
        model=model,
        optimizer=optimizer,
        cursor=cursor,
        faults=faults,
        guard=guard,
        checkpoints=checkpoints,
        progress=progress,
        device=get_device(),
        rank=rank,
        world_size=world_size,
        total_steps=total_steps,
        steps_per_epoch=cursor.batches_per_epoch,
        stop=StopWatcher(hub, spec.name, rank),
    )


def _info(spec: JobSpec, world_size: int) -> dict[str, str]:
    return {
        "model": spec.model.name,
        "optimizer": spec.optimizer.name,
        "mode": spec.guard.mode,
        "world_size": str(world_size),
    }
