"""What a user may pass to the guard, checked."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from prometheus_client import CollectorRegistry
from torch import nn
from torch.jit._script import RecursiveScriptModule
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from guard.act.fused import FusedStep
from guard.act.snapshot import Stateful
from guard.act.stores import is_zero
from guard.config import GuardConfig
from guard.errors import GuardError
from guard.observe.local_norms import find_ddp
from guard.observe.observer import Observer
from guard.observe.shards import Declared, is_distributed
from guard.record.journal import Journal
from guard.record.metrics import GuardMetrics

_LIMITS = ("auto", "norm", "off")
_SAVED = ("step", "attempt", "last_local", "noise_scale", "judge", "ledger", "metrics", "actor")
"""The keys of ``GradientGuard.state_dict``."""
_PHASES = (("first_step", "second_step"), ("ascent_step", "descent_step"), ("perturb_weights", "unperturb"))
"""The two halves of a sharpness-aware step, as public packages name them."""
_SHARPNESS_AWARE = re.compile(r"SAM|Sam(?![a-z])")
"""In the name of a class: SAM, GSAM, WSAM, LookSAM, SAMSGD (Foret et al. 2021 and its variants)."""


def check_deferred(config: GuardConfig, fused: FusedStep, device: torch.device) -> None:
    """Raises GuardError where a step cannot be decided on the device."""
    if device.type not in ("cpu", "cuda"):
        raise GuardError(
            f"mode deferred needs a CUDA device, and the model is on {device}: set mode to exact"
        )
    if not fused.able:
        raise GuardError(
            "mode deferred needs torch's SGD, Adam, AdamW or Adagrad with fused=True in every group, no "
            "DTensors, and no GradScaler (bfloat16 needs none): choose such an optimizer, or mode exact"
        )
    if config.clip.kind not in _LIMITS or (config.clip.kind == "norm" and config.clip.norm_type != 2):
        raise GuardError(
            f"mode deferred has no clip.kind {config.clip.kind} (norm_type {config.clip.norm_type}): choose "
            "auto, norm with norm_type 2, or off; or mode exact"
        )
    if config.on_suspect != "skip":
        raise GuardError("mode deferred skips a suspect step: set on_suspect to skip, or mode to exact")


def as_config(config: GuardConfig | Mapping[str, Any] | None) -> GuardConfig:
    """A ``GuardConfig``; a dict of its fields becomes one."""
    if config is None or isinstance(config, GuardConfig):
        return config or GuardConfig()
    if isinstance(config, Mapping):
        return GuardConfig(**config)
    raise GuardError(f"config is a {type(config).__name__}: pass a GuardConfig, or a dict of its fields")


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Raises GuardError for a model and an optimizer that cannot be guarded together."""
    if not isinstance(model, nn.Module) or not hasattr(optimizer, "param_groups"):
        seen = f"{type(model).__name__}, {type(optimizer).__name__}"
        raise GuardError(
            f"expected a module and its optimizer, got ({seen}): write GradientGuard(model, optimizer)"
        )
    if isinstance(model, RecursiveScriptModule):
        raise GuardError(
            "the model is a TorchScript module, which takes no hooks: pass the module that it was made of, "
            "and compile that with torch.compile"
        )
    own = list(model.parameters())
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if any(is_lazy(parameter) for parameter in (*own, *trained)):
        raise GuardError(
            "the model has a lazy layer whose shape is not known yet: run one batch through the model, "
            "then create the optimizer and the guard"
        )
    if any(parameter.is_meta for parameter in trained):
        raise GuardError(
            "the model is on the meta device and has no weights yet: call to_empty and initialize it, then "
            "create the optimizer and the guard"
        )
    if not any(parameter.requires_grad for parameter in own):
        raise GuardError("the model has no parameter that requires a gradient: nothing to guard")
    if not {id(p) for p in own} & {id(p) for p in trained}:
        raise GuardError(
            "the optimizer has no parameter of the model: pass the optimizer that was made of "
            "model.parameters()"
        )
    if not any(parameter.requires_grad for parameter in trained):
        raise GuardError("the optimizer has no parameter that requires a gradient: nothing to guard")
    _check_closure(optimizer)
    _check_inner(optimizer)


def check_groups(shards: Declared | None, mode: str, process_group: dist.ProcessGroup | None) -> None:
    """Raises GuardError where a process group is none, or none of this rank, or the mode has no shards."""
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        kind = type(process_group).__name__
        raise GuardError(f"process_group is a {kind}: pass what torch.distributed.new_group returned")
    if shards and mode == "deferred":
        raise GuardError("mode deferred has no shards: the norm of all parts is known to the host alone")
    for pattern, group in (shards or {}).items():
        ranks = dist.get_process_group_ranks(group) if isinstance(group, dist.ProcessGroup) else []
        if not ranks or dist.get_rank() not in ranks:
            raise GuardError(
                f"shards[{pattern!r}] is no process group with this rank: pass that whose ranks have parts"
            )


def check_shards(shards: Declared | None, model: nn.Module, observer: Observer) -> None:
    """Raises GuardError where plain parameters cannot be parts of larger ones, as they are declared."""
    named = dict(zip(observer.names, observer.parameters, strict=True))
    ddp = find_ddp(model)
    reduced = set(named) - set(getattr(ddp, "parameters_to_ignore", ())) if ddp is not None else set()
    for pattern in shards or {}:
        found = [name for name in named if fnmatchcase(name, pattern)]
        where = f"shards[{pattern!r}]"
        if not found:
            raise GuardError(f"{where} matches no parameter: there are {', '.join(list(named)[:3])}, ...")
        if divided := [name for name in found if is_distributed(named[name])]:
            raise GuardError(f"{where} matches {divided[0]}, a DTensor, whose layout is known: leave it out")
        if averaged := [name for name in found if name in reduced]:
            raise GuardError(
                f"{where} matches {averaged[0]}, whose gradient DDP averages over the ranks: exclude it with "
                "DistributedDataParallel._set_params_and_buffers_to_ignore_for_model"
            )


def _check_closure(optimizer: Optimizer) -> None:
    kind = type(optimizer).__name__
    if _required(optimizer):
        raise GuardError(
            f"{kind}.step needs a closure and computes the loss several times a step, each on other weights: "
            "choose an optimizer whose step takes no closure"
        )
    two_phases = any(all(hasattr(optimizer, name) for name in pair) for pair in _PHASES)
    if two_phases or any(_SHARPNESS_AWARE.search(base.__name__) for base in type(optimizer).__mro__):
        raise GuardError(
            f"{kind} needs a closure, or two backward passes a step (first_step, second_step), of which the "
            "guard would see one: choose an optimizer with one backward pass a step"
        )


def _check_inner(optimizer: Optimizer) -> None:
    """An optimizer around another one has its state in two places, of which a rollback would restore one."""
    kind = type(optimizer).__name__
    if is_zero(optimizer):
        if optimizer._overlap_with_ddp:
            raise GuardError(
                f"{kind} with overlap_with_ddp=True steps during backward, before the gradient is known: "
                "set overlap_with_ddp=False"
            )
        return
    for name, value in vars(optimizer).items():
        several = isinstance(value, list | tuple)
        for inner in value if several else [value]:
            own = getattr(inner, "state", None) is not getattr(optimizer, "state", None)
            if isinstance(inner, Optimizer) and own and _share(inner.param_groups, optimizer.param_groups):
                instead = (
                    "one optimizer with a group for each" if several else f"optimizer.{name} to the guard"
                )
                raise GuardError(
                    f"{kind} steps an optimizer of its own, {name} ({type(inner).__name__}), whose state a "
                    f"rollback would not restore: pass {instead}, and do what {kind} adds to it after "
                    "guard.step(), where report.applied"
                )
    if not hasattr(optimizer, "_optimizer_step_pre_hooks") or not hasattr(optimizer, "state"):
        raise GuardError(
            f"{kind} is not made as torch's optimizers are: call super().__init__(params, defaults) in it"
        )


def _check_scheduler(scheduler: Any, optimizer: Optimizer) -> None:
    kind = "class" if isinstance(scheduler, type) else type(scheduler).__name__
    own = 'step it yourself and pass it as state={"scheduler": scheduler} instead of scheduler='
    if isinstance(scheduler, ReduceLROnPlateau):
        raise GuardError(
            f"ReduceLROnPlateau needs a metric at each step, which the guard does not have: {own}"
        )
    for method in ("step", "state_dict", "load_state_dict"):
        if isinstance(scheduler, type) or not callable(getattr(scheduler, method, None)):
            raise GuardError(
                f"scheduler is a {kind}, which has no {method}: pass a scheduler as torch has them"
            )
    if required := _required(scheduler):
        raise GuardError(
            f"the scheduler {kind} has step({', '.join(required)}), the guard calls step(): {own}"
        )
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", None)
    if isinstance(groups, list) and not _share(groups, optimizer.param_groups):
        raise GuardError(
            f"the scheduler {kind} belongs to another optimizer: pass the one made of this optimizer"
        )


def _share(groups: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    known = {id(p) for group in others for p in group["params"]}
    return any(id(p) in known for group in groups for p in group["params"])


def _required(owner: Any) -> list[str]:
    """The names of the arguments without which its ``step`` cannot be called."""
    try:  # of the class: a scheduler replaces the method of the instance by one that takes anything
        _, *parameters = inspect.signature(type(owner).step).parameters.values()
    except (AttributeError, TypeError, ValueError):
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def check_states(
    optimizer: Optimizer,
    scheduler: Any,
    states: Mapping[str, Stateful],
    data: Stateful | None,
    ema: Stateful | None,
) -> None:
    """Raises GuardError for a scheduler or a state that a rollback could not restore."""
    if scheduler is not None:
        _check_scheduler(scheduler, optimizer)
    for name in ("data", "ema"):
        if name in states:
            raise GuardError(f"state has the key {name!r}: write {name}=..., an argument beside state=")
    named = {f"state[{name!r}]": stateful for name, stateful in states.items()}
    for name, stateful in {**named, "data": data, "ema": ema}.items():
        able = hasattr(stateful, "state_dict") and hasattr(stateful, "load_state_dict")
        if stateful is not None and not able:
            raise GuardError(f"{name} is a {type(stateful).__name__}: give it state_dict and load_state_dict")


def as_states(state: Mapping[str, Stateful] | None) -> dict[str, Stateful]:
    """A copy of ``state``."""
    if state is not None and not isinstance(state, Mapping):
        raise GuardError(f'state is a {type(state).__name__}: pass a dict, as in state={{"name": object}}')
    return dict(state or {})


def as_journal(journal: Journal | str | Path | None, rank: int) -> Journal | None:
    """A journal, on rank 0."""
    if journal is None or isinstance(journal, Journal):
        return journal if rank == 0 else None
    if not isinstance(journal, str | Path) or Path(journal).is_dir():
        raise GuardError(f"journal is {str(journal)!r}, no file: pass a path such as incidents.jsonl")
    return Journal(journal) if rank == 0 else None


def check_change(reason: str, steps: int) -> None:
    """Raises GuardError for a change that cannot be announced."""
    if not isinstance(steps, int) or steps < 1:
        raise GuardError(f"steps is {steps!r}: expect a change for at least 1 step")
    if not isinstance(reason, str) or not reason.strip():
        raise GuardError(f'reason is {reason!r}: write what changes, as in expect_change("smoothing on")')


def as_callable(given: Any, name: str, hint: str) -> Any:
    """What the guard is to call, if it can be called; None where there is none.

    Raises:
        GuardError: it cannot.
    """
    if given is None or callable(given):
        return given
    raise GuardError(f"{name} is a {type(given).__name__}: {hint}")


def check_saved(state: Any) -> None:
    """Raises GuardError for what is no state of a guard."""
    saved = state if isinstance(state, Mapping) else {}
    missing = [key for key in _SAVED if key not in saved]
    if missing:
        kind = type(state).__name__
        raise GuardError(f"the state, a {kind}, has no {missing[0]!r}: pass what guard.state_dict() returned")


def as_metrics(metrics: GuardMetrics | CollectorRegistry | None, job: str) -> GuardMetrics | None:
    """A ``GuardMetrics``, made and registered where a registry was given."""
    if isinstance(metrics, CollectorRegistry):
        created = GuardMetrics(job=job)
        try:
            created.register(metrics)
        except ValueError as error:
            raise GuardError(f"metrics: {error}") from None
        return created
    if metrics is not None and not isinstance(metrics, GuardMetrics):
        raise GuardError(f"metrics is a {type(metrics).__name__}: pass a GuardMetrics or a registry")
    return metrics


class WrappedOptimizer:
    """The user's optimizer, which Accelerate may have wrapped: the wrapper steps only now and then.

    Attributes:
        inner: torch's own optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._state = getattr(optimizer, "gradient_state", None)
        self.inner: Optimizer = optimizer if self._state is None else optimizer.optimizer  # type: ignore[attr-defined]

    def check_step(self, closure: Any) -> None:
        """Raises GuardError for a closure that is none, within Accelerate's ``accumulate`` also before
        the last micro-batch of a step."""
        as_callable(closure, "closure", "a loss goes to guard.backward(loss), before guard.step()")
        if self._state is not None and not self._state.sync_gradients:
            raise GuardError(
                "Accelerate still accumulates gradients: write guard.backward(loss, weight=1 / "
                "accelerator.gradient_accumulation_steps), and guard.step() only if "
                "accelerator.sync_gradients"
            )
