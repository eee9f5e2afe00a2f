"""Builds what one rank trains with, from the spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model
from torch import nn
from torch.optim import Optimizer

from guard import FaultInjector, GradientGuard, GuardMetrics
from guard.act.snapshot import Stateful
from guard.observe.observer import unwrap
from jobs.checkpoints import CheckpointManager, Policy
from jobs.data.cursor import DataCursor
from jobs.init import build_initialized
from jobs.observability.progress import Progress
from jobs.placement.hardware_faults import HardwareFaults, named
from jobs.run_dir.paths import HISTORY, RunDir
from jobs.spec.job_spec import JobSpec
from jobs.training.compile import compile_forward
from jobs.training.data_agreement import check_same_data
from jobs.training.determinism import seed_generators, settle_buckets
from jobs.training.dropout import set_randomness
from jobs.training.evaluate import StopWatcher
from jobs.training.optim import build_optimizer, build_schedule, tables_of
from jobs.training.preflight import before_first_step
from jobs.training.regularize import Regularizer
from jobs.training.stepper import Stepper, make_average, make_scaler
from jobs.training.watchdog import Watchdog
from jobs.workloads import load_workload
from jobs.workloads.base import ReadsAhead, Workload


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
    checkpoints: CheckpointManager
    progress: Progress
    stepper: Stepper
    device: torch.device
    rank: int
    world_size: int
    total_steps: int
    steps_per_epoch: int
    stop: StopWatcher
    pulse: Watchdog
    hardware: HardwareFaults

    @property
    def bare_model(self) -> nn.Module:
        """The model without its DDP wrapper."""
        return unwrap(self.model)

    @property
    def evaluated_model(self) -> nn.Module:
        """The moving average of the weights where there is one, else the model."""
        average = self.stepper.average
        averaged: nn.Module | None = None if average is None else average.module
        return self.bare_model if averaged is None else averaged

    def close(self) -> None:
        """Ends what the workload has running beside the training."""
        if isinstance(self.workload, ReadsAhead):
            self.workload.close()

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        return self.spec.train.eval_every_epochs * self.steps_per_epoch


def build(spec: JobSpec, hub: Any, pulse: Watchdog) -> Run:
    """Makes all parts, wraps the model for DDP, and loads the job's newest checkpoint, if there is one."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    folder = RunDir(spec.job_dir)
    seed_generators(spec.seed, rank)
    workload = load_workload(spec)
    check_same_data(workload, world_size)
    cursor = DataCursor(workload.n_train, spec.data.batch_size, spec.seed)
    total_steps = spec.total_steps(workload.n_train)
    initialized = build_initialized(spec, workload)
    if spec.train.channels_last:
        initialized = initialized.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = prepare_model(initialized, parallel_strategy_kwargs={"gradient_as_bucket_view": True})
    set_randomness(unwrap(model), spec.regularize)
    if world_size > 1:
        settle_buckets(model, workload, get_device())
    optimizer = build_optimizer(
        spec.optimizer,
        model.parameters(),
        decay_on=spec.regularize.weight_decay_on,
        tables=tables_of(unwrap(model)),
    )
    schedule = build_schedule(spec.schedule, optimizer, total_steps)
    faults = FaultInjector(spec.faults, model=model, optimizer=optimizer, rank=rank)
    scaler = make_scaler(get_device(), spec.train.precision)
    average = make_average(unwrap(model), spec.train.ema_decay)
    metrics = _metrics(spec, workload, world_size)
    guard = GradientGuard(
        model,
        optimizer,
        spec.guard,
        scheduler=schedule,
        scaler=scaler,
        data=cursor,
        ema=average,
        metrics=metrics,
        journal=folder.incidents,
        job=spec.name,
    )
    nodes, places = _places(world_size)
    hardware = HardwareFaults(nodes, spec.scale.max_hardware_faults)
    progress = Progress(spec, folder, hub, guard, total_steps, rank=rank, places=places)
    parts: dict[str, Stateful] = {
        "model": unwrap(model),
        "optimizer": optimizer,
        "schedule": schedule,
        **({} if scaler is None else {"scaler": scaler}),
        **({} if average is None else {"average": average}),
        "cursor": cursor,
        "faults": faults,
        "guard": guard,
        "progress": progress,
        "hardware": hardware,
    }
    checkpoints = CheckpointManager(
        spec.checkpoint_place,
        parts,
        policy=Policy(
            keep=spec.train.checkpoint_keep,
            best=spec.train.checkpoint_best,
            clean_steps=spec.guard.snapshot.clean_steps,
        ),
        spec=spec.model_dump(mode="json"),
        describe=lambda: (guard.attempts, progress.evaluation),
        metrics=metrics,
        notify=progress.event,
        timeout_s=spec.scale.timeout_s,
        history=spec.job_dir / HISTORY,
    )

    def restore(before: int | None) -> int | None:
        pulse.rest()  # reading a checkpoint may take longer than a batch
        return checkpoints.restore(before)

    guard.restore_from(restore)
    resumed = checkpoints.load_latest()
    undone = progress.rewind_files()
    if resumed is not None:
        progress.event("info", f"continuing from the checkpoint of step {resumed}")
    elif undone:
        progress.event("warning", "continuing from step 0: there is no checkpoint yet")
    else:
        before_first_step(spec, workload, unwrap(model), folder, progress)
    if spec.train.compile:
        compile_forward(unwrap(model), get_device())
    if isinstance(workload, ReadsAhead):
        workload.read_ahead(cursor, rank, world_size, get_device())
    if spec.scale.min_workers is not None:
        progress.event("info", f"training on a world size of {world_size}")
    stepper = Stepper(
        workload=workload,
        model=model,
        optimizer=optimizer,
        guard=guard,
        regularizer=Regularizer(spec.regularize, unwrap(model), total_steps=total_steps, seed=spec.seed),
        faults=faults,
        device=get_device(),
        precision=spec.train.precision,
        micro_batches=spec.train.micro_batches,
        scaler=scaler,
        average=average,
    )
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
        stepper=stepper,
        device=get_device(),
        rank=rank,
        world_size=world_size,
        total_steps=total_steps,
        steps_per_epoch=cursor.batches_per_epoch,
        stop=StopWatcher(hub, spec.name, rank),
        pulse=pulse,
        hardware=hardware,
    )


def _metrics(spec: JobSpec, workload: Workload, world_size: int) -> GuardMetrics:
    tokens_per_sample: int | None = getattr(workload, "tokens_per_sample", None)
    return GuardMetrics(
        job=spec.name,
        info=_info(spec, world_size),
        samples_per_step=spec.data.batch_size,
        tokens_per_step=tokens_per_sample and tokens_per_sample * spec.data.batch_size,
        max_layers=spec.metrics.max_layers,
        max_ranks=spec.metrics.max_ranks,
    )


def _info(spec: JobSpec, world_size: int) -> dict[str, str]:
    return {
        "model": spec.model.name,
        "optimizer": spec.optimizer.name,
        "mode": spec.guard.mode,
        "world_size": str(world_size),
    }


def _places(world_size: int) -> tuple[list[str], list[str]]:
    """The node's id of every rank, and its node and device as people are told them."""
    node = ray.get_runtime_context().get_node_id()
    mine = (node, f"{named([node])}, {get_device()}")
    all_of = [mine] * world_size
    if world_size > 1:
        dist.all_gather_object(all_of, mine)  # once, before the first step; every rank comes here
    return [node for node, _ in all_of], [place for _, place in all_of]
