"""What the sections of a spec require of each other.

Each function is a pydantic validator of one field of ``JobSpec``; it raises ``PydanticCustomError`` where the
field contradicts a field above it. A section that is itself wrong is absent from ``info.data``.
"""

from __future__ import annotations

import math

from pydantic import ValidationInfo

from guard.config import GuardConfig
from guard.faults.config import FaultConfig
from jobs.spec.data import DataSpec
from jobs.spec.errors import related
from jobs.spec.optim import OptimizerSpec
from jobs.spec.regularize import RegularizeSpec
from jobs.spec.sections import TrainSpec


def equal_shares(value: DataSpec, info: ValidationInfo) -> DataSpec:
    """The batch has an equal share for each worker, for every world size of an elastic job."""
    scale = info.data.get("scale")
    unit = 1 if scale is None else math.lcm(*scale.world_sizes)
    if scale is None or value.batch_size % unit == 0:
        return value
    nearest = max(1, round(value.batch_size / unit)) * unit
    elastic = ", and of all numbers of workers down to scale.min_workers" if unit > scale.workers else ""
    message = f"must be a multiple of scale.workers = {scale.workers}{elastic}, so that all shares are equal"
    raise related(message, field="batch_size", value=value.batch_size, suggestion=f"write {nearest}")


def schedule_fits(value: TrainSpec, info: ValidationInfo) -> TrainSpec:
    schedule = info.data.get("schedule")
    if schedule is None or value.max_steps is None or schedule.too_long(value.max_steps) is None:
        return value
    needed = {"warmup_steps": schedule.warmup_steps, "decay_steps": schedule.decay_steps}
    sizes = " and ".join(f"schedule.{name} = {steps}" for name, steps in needed.items() if steps)
    raise related(f"must be more than {sizes}", field="max_steps", value=value.max_steps)


def micro_batches(value: TrainSpec, info: ValidationInfo) -> TrainSpec:
    scale, data = info.data.get("scale"), info.data.get("data")
    if scale is None or data is None:
        return value
    shares = [data.batch_size // workers for workers in scale.world_sizes]
    share = next((share for share in shares if share % value.micro_batches), None)
    if share is None:
        return value
    message = f"must divide a worker's share of the batch, {share} samples"
    raise related(message, field="micro_batches", value=value.micro_batches)


def deferred(value: GuardConfig, info: ValidationInfo) -> GuardConfig:
    """Nothing follows a step at once: a deferred guard reports one step late whether it was applied."""
    train, regularize, optimizer = (info.data.get(name) for name in ("train", "regularize", "optimizer"))
    if value.mode != "deferred" or train is None or regularize is None:
        return value
    found = needs_exact(value, train, regularize, optimizer)
    if found:
        message = f"does not work with {' and '.join(found)}"
        raise related(message, field="mode", value=value.mode, suggestion="write exact")
    return value


def needs_exact(
    value: GuardConfig, train: TrainSpec, regularize: RegularizeSpec, optimizer: OptimizerSpec | None
) -> list[str]:
    """The settings of a job with which its guard cannot be deferred."""
    reasons = {
        "train.ema_decay": train.ema_decay is not None,
        "train.precision fp16": train.precision == "fp16",
        "regularize.l1": regularize.l1 > 0,
        "regularize.l2": regularize.l2 > 0,
        f"guard.clip.kind {value.clip.kind}": value.clip.kind not in ("auto", "norm", "off"),
        "guard.on_suspect clip": value.on_suspect == "clip",
        "optimizer.name muon": optimizer is not None and optimizer.name == "muon",
    }
    return [name for name, is_set in reasons.items() if is_set]


def fault(value: FaultConfig, info: ValidationInfo) -> FaultConfig:
    """Its rank exists, and its step is reached."""
    scale, train = info.data.get("scale"), info.data.get("train")
    if scale is not None and value.rank is not None and value.rank >= scale.workers:
        allowed = f"0..{scale.workers - 1}" if scale.workers > 1 else "0"
        message = f"no such rank: scale.workers is {scale.workers}, so ranks are {allowed}"
        raise related(message, field="rank", value=value.rank)
    if train is not None and train.max_steps is not None and value.step >= train.max_steps:
        message = f"never fires: training ends after train.max_steps = {train.max_steps}"
        raise related(message, field="step", value=value.step)
    return value
