"""What a layout requires of the other sections.

Each function is a pydantic validator of one field of ``JobSpec``; see ``cross_checks``.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationInfo

from guard.config import ExclusionConfig, GuardConfig
from guard.faults.config import FaultConfig
from jobs.spec.errors import related
from jobs.spec.huggingface import HUGGINGFACE
from jobs.spec.language import LANGUAGE
from jobs.spec.parallel import ParallelSpec
from jobs.spec.sections import ModelSpec, ScaleSpec

_ON_PARAMETERS = ("bitflip_weight", "bitflip_moment", "bitflip_gradient", "scaled_gradient")


def layout(value: ParallelSpec, info: ValidationInfo) -> ParallelSpec:
    """The workers can be divided so, the model too, and no setting above contradicts."""
    scale, model = info.data.get("scale"), info.data.get("model")
    _check_unused(value)
    if scale is not None:
        _check_workers(value, scale)
    if value.tensor > 1:
        _check_tensor(value, model, info)
    refused = list(_refused(value, info)) if value.sharded else []
    if refused:
        kind = f"kind {value.kind}" if value.kind != "ddp" else f"tensor {value.tensor}"
        message = f"{kind} does not work with {' and '.join(refused)}: remove one of them"
        raise related(message, field="kind" if value.kind != "ddp" else "tensor", value=kind.split()[1])
    return value


def guard(value: GuardConfig, info: ValidationInfo) -> GuardConfig:
    """The guard's settings that need a whole gradient on each rank."""
    parallel = info.data.get("parallel")
    if parallel is None or not parallel.sharded:
        return value
    name = f"parallel.kind {parallel.kind}" if parallel.kind != "ddp" else "parallel.tensor"
    if value.mode == "deferred":
        message = f"does not work with {name}: norms are summed over the shards"
        raise related(message, field="mode", value="deferred", suggestion="write exact")
    if value.local_norm_by == "comm":
        message = f"is a communication hook of DDP, and does not work with {name}"
        raise related(message, field="local_norm_by", value="comm", suggestion="write auto")
    if value.rank_exclusion.after is not None and value.rank_exclusion != ExclusionConfig():
        message = f"does not work with {name}: a rank has no gradient of its own; remove it"
        raise related(message, field="rank_exclusion.after", value=value.rank_exclusion.after)
    if value.exclude_samples:
        message = f"does not work with {name}: all ranks compute each batch together; remove it"
        raise related(message, field="exclude_samples", value=True)
    return value


def fault(value: FaultConfig, info: ValidationInfo) -> FaultConfig:
    """It does not act on a whole parameter, or on its gradient."""
    parallel = info.data.get("parallel")
    if parallel is None or not parallel.sharded or value.kind not in _ON_PARAMETERS:
        return value
    message = "acts on a whole parameter, of which a divided model has parts"
    raise related(message, field="kind", value=value.kind, suggestion="write nan_loss or lr_spike")


def _check_unused(value: ParallelSpec) -> None:
    if value.shard is not None and value.kind != "hsdp":
        message = f"is for kind hsdp, this one is {value.kind}: remove it"
        raise related(message, field="shard", value=value.shard)
    unused = (("cpu_offload", value.cpu_offload), ("reshard_after_forward", not value.reshard_after_forward))
    for field, is_set in unused:
        if is_set and not value.sharded:
            message = "is for kind fsdp2 or hsdp, this one is ddp: remove it"
            raise related(message, field=field, value=getattr(value, field))


def _check_workers(value: ParallelSpec, scale: ScaleSpec) -> None:
    workers, elastic = scale.workers, len(scale.world_sizes) > 1
    if elastic and (value.kind == "hsdp" or value.tensor > 1):
        field = "kind" if value.kind == "hsdp" else "tensor"
        message = "needs a fixed number of workers, and scale.min_workers makes the job elastic"
        suggestion = "remove scale.min_workers, or write kind: fsdp2 and tensor: 1"
        raise related(message, field=field, value=getattr(value, field), suggestion=suggestion)
    if workers % value.tensor:
        message = f"must divide scale.workers = {workers}"
        raise related(message, field="tensor", value=value.tensor)
    ranks = value.data_parallel(workers)
    fewest = {"ddp": 1, "fsdp2": 2, "hsdp": 4}[value.kind]
    if ranks < fewest and not (value.kind == "hsdp" and value.shard and ranks >= 2):
        needed = f"{fewest * value.tensor}" + (f" (tensor is {value.tensor})" if value.tensor > 1 else "")
        message = f"needs scale.workers of at least {needed}, and it is {workers}"
        raise related(message, field="kind", value=value.kind, suggestion="write ddp, or more workers")
    if value.kind == "hsdp" and (ranks % value.shards(workers) or ranks == value.shards(workers)):
        message = f"must divide the {ranks} data-parallel workers into two or more replicas"
        raise related(message, field="shard", value=value.shards(workers))


def _check_tensor(value: ParallelSpec, model: ModelSpec | None, info: ValidationInfo) -> None:
    if info.data.get("workload") != LANGUAGE:
        message = "divides the matrices of a gpt, and works with workload language alone"
        raise related(message, field="tensor", value=value.tensor, suggestion="write 1, and kind fsdp2")
    if model is None:
        return
    heads = model.gpt_shape(tokens=1).heads
    if heads % value.tensor:
        message = f"must divide the {heads} heads of {model.name}"
        raise related(message, field="tensor", value=value.tensor)
    if model.qk_norm:
        message = "does not work with model.qk_norm: remove one of them"
        raise related(message, field="tensor", value=value.tensor)


def _refused(value: ParallelSpec, info: ValidationInfo) -> Iterator[str]:
    """The settings of other sections that need the whole model on each rank."""
    train, regularize, optimizer = (info.data.get(name) for name in ("train", "regularize", "optimizer"))
    if info.data.get("workload") == HUGGINGFACE:
        yield "workload huggingface"  # ranks evaluate shares of their own
    if optimizer is not None and optimizer.name == "muon":
        yield "optimizer.name muon"
    if train is not None:
        settings = {
            "train.ema_decay": train.ema_decay is not None,
            "train.precision fp16": train.precision == "fp16",
            "train.compile": train.compile,
            "train.channels_last": train.channels_last,
        }
        yield from (name for name, is_set in settings.items() if is_set)
    if regularize is not None:
        names = ["orthogonal", "gradient_noise"]
        names += ["dropout", "stochastic_depth"] if value.tensor > 1 else []
        yield from (f"regularize.{name}" for name in names if getattr(regularize, name))
