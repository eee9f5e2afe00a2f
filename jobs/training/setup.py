"""Builds what one rank trains with, from the spec: data, model, guard, checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model
from torch import nn

from guard import FaultInjector, GradientGuard, GuardConfig, GuardMetrics
from guard.act.snapshot import Stateful
from guard.observe.watched import unwrap
from guard.trackers import Trackers
from jobs.checkpoints import CheckpointManager, Policy
from jobs.init import build_initialized
from jobs.models.huggingface import TrainedWeights, is_adapted
from jobs.observability.gpu import GpuUse
from jobs.observability.profile import StepProfiler
from jobs.observability.progress import Progress
from jobs.placement.hardware_faults import HardwareFaults, display_names
from jobs.run_dir.paths import HISTORY, RunDir
from jobs.spec.cross_checks import needs_exact
from jobs.spec.job_spec import JobSpec
from jobs.spec.masking import masked_spec
from jobs.training.announce import announce_changes
from jobs.training.compile import compile_forward
from jobs.training.data_agreement import identity, load_agreed
from jobs.training.determinism import seed_everything, settle_ddp_buckets
from jobs.training.dropout import set_randomness
from jobs.training.optim import build_optimizer, build_schedule, tables_of
from jobs.training.preflight import before_first_step
from jobs.training.regularize import Regularizer
from jobs.training.run import Data, Model, Run, World
from jobs.training.stepper import Stepper, make_average, make_scaler
from jobs.training.stop import StopWatcher
from jobs.training.watchdog import Watchdog
from jobs.workloads.base import ReadsAhead
from jobs.workloads.load import make_cursor

log = logging.getLogger(__name__)

DDP_OPTIONS = {"gradient_as_bucket_view": True}


def build(spec: JobSpec, hub: Any, watchdog: Watchdog) -> Run:
    """Builds all parts and loads the job's newest good checkpoint, if there is one. Collective."""
    world = build_world(spec)
    seed_everything(spec.seed, world.rank)
    data = build_data(spec, world)
    model = build_model(spec, data, world)
    stepper = build_stepper(spec, data, model, world, watchdog.beat)
    progress = Progress(
        spec,
        RunDir(spec.job_dir),
        hub,
        stepper.guard,
        data.total_steps,
        rank=world.rank,
        places=world.places,
        trackers=open_trackers(spec, world),
        gpu=GpuUse(world.device),
    )
    hardware = HardwareFaults(world.nodes, spec.scale.max_hardware_faults)
    checkpoints = open_checkpoints(spec, data, model, stepper, progress, hardware)
    stop = StopWatcher(hub, spec.name, world.rank)
    steps = spec.train.profile_steps if world.rank == 0 else 0
    profiler = StepProfiler(steps, spec.job_dir, world.device, progress.event)
    run = Run(
        spec,
        world,
        data,
        model,
        stepper.guard,
        stepper,
        progress,
        hardware,
        checkpoints,
        stop,
        watchdog,
        profiler,
    )
    if model.unused:
        names = ", ".join(model.unused[:3]) + (" ..." if len(model.unused) > 3 else "")
        progress.event("warning", f"{len(model.unused)} parameters get no gradient from the loss: {names}")
    resume(run)
    prepare_first_step(run)
    return run


def open_trackers(spec: JobSpec, world: World) -> Trackers:
    """Those of the spec, on rank 0; its secrets are masked."""
    settings = masked_spec(spec.model_dump(mode="json"))
    trackers = spec.track if world.rank == 0 else ()
    return Trackers(trackers, name=spec.name, spec=settings, folder=spec.job_dir / "track", resume=True)


def build_world(spec: JobSpec) -> World:
    """This rank, its device, and the nodes of all ranks. Collective."""
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device, node = get_device(), ray.get_runtime_context().get_node_id()
    own = (node, f"{display_names([node])}, {device}")
    all_ranks = [own] * size
    if size > 1:
        # All-gather, once at the start of a run; every rank calls this first, and waits for the slowest.
        dist.all_gather_object(all_ranks, own)
    nodes, places = [node for node, _ in all_ranks], [place for _, place in all_ranks]
    return World(rank, size, device, nodes, places, spec.parallel.tensor)


def build_data(spec: JobSpec, world: World) -> Data:
    """The workload and the cursor over its training set. Collective.

    Raises:
        DataError: on all ranks, when one cannot read the data, or they do not see the same.
    """
    workload = load_agreed(spec, world)
    cursor = make_cursor(workload, spec)
    cursor.describe = getattr(workload, "describe_sample", None)
    return Data(workload, cursor, spec.total_steps(workload.n_train))


def build_model(spec: JobSpec, data: Data, world: World) -> Model:
    """The initialized model, divided or in DDP where there are several ranks, and what updates it.

    Collective.
    """
    unused: list[str] = []
    if is_divided(spec, world):
        from jobs.layout.build import build_sharded  # two seconds, which other jobs need not wait

        wrapped = build_sharded(spec, data.workload, world.device)
        set_randomness(wrapped, spec.regularize)
    else:
        wrapped, unused = build_replicated(spec, data, world)
    bare = unwrap(wrapped)
    optimizer = build_optimizer(
        spec.optimizer, wrapped.parameters(), decay_on=spec.regularize.weight_decay_on, tables=tables_of(bare)
    )
    return Model(
        wrapped,
        optimizer,
        build_schedule(spec.schedule, optimizer, data.total_steps),
        make_scaler(world.device, spec.train.precision),
        make_average(bare, spec.train.ema_decay),
        tuple(unused),
        divided=is_divided(spec, world),
    )


def is_divided(spec: JobSpec, world: World) -> bool:
    """Whether each rank has a part of the model; an elastic job with one worker left has all of it."""
    return spec.parallel.sharded and world.size > 1


def build_replicated(spec: JobSpec, data: Data, world: World) -> tuple[nn.Module, list[str]]:
    """The whole model on each rank, in DDP where there are several; and what gets no gradient."""
    initialized = build_initialized(spec, data.workload)
    if spec.parallel.activation_checkpointing != "none":
        from jobs.layout.activations import checkpoint_activations
        from jobs.layout.blocks import blocks_of

        checkpoint_activations(blocks_of(initialized), spec.parallel.activation_checkpointing)
    if spec.train.channels_last:
        initialized = initialized.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # DDP broadcasts rank 0's parameters and buffers; every rank wraps its model, and waits for the slowest.
    wrapped, unused = prepare_model(initialized, parallel_strategy_kwargs=DDP_OPTIONS), []
    bare = unwrap(wrapped)
    set_randomness(bare, spec.regularize)
    if world.size > 1:
        unused = settle_ddp_buckets(wrapped, data.workload, world.device)
    if unused:
        del wrapped  # and with it DDP's hooks
        # As above: every rank found the same parameters.
        options = {**DDP_OPTIONS, "find_unused_parameters": True}
        wrapped = prepare_model(bare, parallel_strategy_kwargs=options)
    return wrapped, unused


def guard_config(spec: JobSpec, total_steps: int, *, divided: bool = False) -> GuardConfig:
    """The guard's section; ``auto`` is ``exact`` where a setting of the job needs that.

    Args:
        total_steps: of the run, where the section names none.
        divided: whether the model is; then no rank has a gradient of its own that could be excluded.
    """
    config = spec.guard.model_copy(update={"total_steps": spec.guard.total_steps or total_steps})
    if divided:
        without = config.rank_exclusion.model_copy(update={"after": None})
        config = config.model_copy(update={"rank_exclusion": without})
    needs = needs_exact(config, spec.train, spec.regularize, spec.optimizer)
    needs += ["a divided model"] * divided
    if config.mode != "auto" or not needs:
        return config
    log.info("guard.mode auto is exact: deferred does not work with %s", " and ".join(needs))
    return config.model_copy(update={"mode": "exact"})


def build_guard(spec: JobSpec, data: Data, model: Model, world: World) -> GradientGuard:
    """The guard over model, optimizer, schedule, loss scale, data cursor and moving average."""
    tokens_per_sample: int | None = getattr(data.workload, "tokens_per_sample", None)
    metrics = GuardMetrics(
        job=spec.name,
        info={
            "model": spec.model.name,
            "optimizer": spec.optimizer.name,
            "mode": spec.guard.mode,
            "world_size": str(world.size),
        },
        samples_per_step=spec.data.batch_size,
        tokens_per_step=tokens_per_sample and tokens_per_sample * spec.data.batch_size,
        max_layers=spec.metrics.max_layers,
        max_ranks=spec.metrics.max_ranks,
    )
    guard = GradientGuard(
        model.wrapped,
        model.optimizer,
        guard_config(spec, data.total_steps, divided=model.divided),
        scheduler=model.schedule,
        scaler=model.scaler,
        data=data.cursor,
        ema=model.average,
        metrics=metrics,
        journal=RunDir(spec.job_dir).incidents,
        job=spec.name,
    )
    metrics.info["mode"] = guard.config.mode  # what ``auto`` has chosen
    return guard


def build_stepper(
    spec: JobSpec, data: Data, model: Model, world: World, beat: Callable[[], None] | None = None
) -> Stepper:
    """One optimizer step, with the guard, the regularizers and the faults to inject."""
    faults = FaultInjector(spec.faults, model=model.wrapped, optimizer=model.optimizer, rank=world.rank)
    return Stepper(
        workload=data.workload,
        model=model.wrapped,
        optimizer=model.optimizer,
        guard=build_guard(spec, data, model, world),
        regularizer=Regularizer(spec.regularize, model.bare, total_steps=data.total_steps, seed=spec.seed),
        faults=faults,
        device=world.device,
        precision="fp32" if model.divided else spec.train.precision,  # FSDP2 has its own
        micro_batches=spec.train.micro_batches,
        scaler=model.scaler,
        average=model.average,
        beat=beat,
    )


def open_checkpoints(
    spec: JobSpec, data: Data, model: Model, stepper: Stepper, progress: Progress, hardware: HardwareFaults
) -> CheckpointManager:
    """The job's checkpoints, with all that a resumed run needs; they are loaded in this order."""
    guard = stepper.guard
    parts: dict[str, Stateful] = {
        "model": TrainedWeights(model.bare) if is_adapted(model.bare) else model.bare,
        "optimizer": model.optimizer,
        "schedule": model.schedule,
        **({} if model.scaler is None else {"scaler": model.scaler}),
        **({} if model.average is None else {"average": model.average}),
        "cursor": data.cursor,
        "faults": stepper.faults,
        "guard": guard,
        "progress": progress,
        "hardware": hardware,
    }
    train, clean_steps = spec.train, spec.guard.snapshot.clean_steps
    policy = Policy(keep=train.checkpoint_keep, best=train.checkpoint_best, clean_steps=clean_steps)
    return CheckpointManager(
        spec.checkpoint_place,
        parts,
        policy=policy,
        spec=spec.model_dump(mode="json"),
        data=identity(data.workload),
        accept_other_data=spec.data.on_changed == "continue",
        describe=lambda: (guard.attempts, progress.evaluation),
        metrics=guard.metrics,
        notify=progress.event,
        timeout_s=spec.scale.timeout_s,
        history=spec.job_dir / HISTORY,
    )


def resume(run: Run) -> None:
    """Loads the newest good checkpoint and cuts the job's files back to it; else runs the pre-flight."""

    def restore(before: int | None) -> int | None:
        run.watchdog.pause()  # reading a checkpoint may take longer than a batch
        return run.checkpoints.restore(before)

    run.guard.restore_from(restore)
    step = run.checkpoints.load_latest()
    had_rows = run.progress.roll_back_files()
    if step is not None:
        run.progress.event("info", f"continuing from the checkpoint of step {step}")
        announced = announce_changes(run.guard, run.model.schedule, run.checkpoints.changed)
        if announced is not None:
            run.progress.event("info", announced)
        return
    if had_rows:  # known to rank 0 alone, which has the files
        run.progress.event("warning", "continuing from step 0: there is no checkpoint yet")
    run_preflight_once(run, needed=not had_rows)


def run_preflight_once(run: Run, *, needed: bool) -> None:
    """The pre-flight of rank 0, on a whole model. Collective."""
    model = run.model.bare
    if run.model.divided and needed and run.world.rank == 0 and run.spec.preflight != "off":
        from jobs.layout.build import whole_for_preflight

        whole = whole_for_preflight(run.spec, run.data.workload, model)
        if whole is None:
            run.progress.event("info", "no pre-flight: the model is too large for one worker")
        needed = whole is not None
        model = model if whole is None else whole.to(run.world.device)
    before_first_step(
        run.spec,
        run.data.workload,
        model,
        RunDir(run.spec.job_dir),
        run.progress,
        needed=needed,
        device=run.world.device,
    )


def prepare_first_step(run: Run) -> None:
    """Compiles the model and starts prefetching, where the spec asks for it."""
    spec, data, world = run.spec, run.data, run.world
    if spec.train.compile:
        compile_forward(run.model.bare, world.device)
    if isinstance(data.workload, ReadsAhead):
        data.workload.read_ahead(data.cursor, world.rank, world.size, world.device)
    if spec.scale.min_workers is not None:
        run.progress.event("info", f"training on a world size of {world.size}")
