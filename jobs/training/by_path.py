"""Optimizers and schedules that a spec names by their import path."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from jobs.checkpoints.errors import UnsupportedState
from jobs.checkpoints.state import take_apart
from jobs.spec.errors import SpecError, did_you_mean, single
from jobs.spec.imported import imported
from jobs.spec.optim import OptimizerSpec, ScheduleSpec

_RUN_LENGTH = ("total_steps", "T_max", "num_training_steps")
"""Arguments that are the number of steps of the run."""


def optimizer_by_path(spec: OptimizerSpec, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer over these groups.

    Raises:
        SpecError: it is not there, does not take these arguments, or cannot be stepped by a job.
    """
    make = imported("optimizer.name", spec.name)
    given = {"lr": spec.lr}
    if spec.weight_decay or "weight_decay" in _parameters(make):
        given["weight_decay"] = spec.weight_decay
    optimizer = _make("optimizer", spec, make, groups, given)
    if not isinstance(optimizer, Optimizer):
        raise _wrong("optimizer", spec, f"makes a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if _required(type(optimizer).step):
        raise _wrong("optimizer", spec, "needs a closure in step(), which the guard cannot give it")
    return optimizer


def schedule_by_path(spec: ScheduleSpec, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The schedule of this optimizer.

    Raises:
        SpecError: it is not there, does not take these arguments, or cannot be stepped by a job.
    """
    make = imported("schedule.name", spec.name)
    unset = (None, inspect.Parameter.empty)
    lengths = [p for name, p in _parameters(make).items() if name in _RUN_LENGTH and p.default in unset]
    schedule = _make("schedule", spec, make, optimizer, {p.name: total_steps for p in lengths})
    if isinstance(schedule, ReduceLROnPlateau) or _required(getattr(type(schedule), "step", None)):
        raise _wrong("schedule", spec, "needs a metric in step(): write one that follows the steps alone")
    if not isinstance(schedule, LRScheduler):
        raise _wrong("schedule", spec, f"makes a {type(schedule).__name__}, not a torch LRScheduler")
    try:
        take_apart(schedule.state_dict(), "its state", {})
    except UnsupportedState as error:
        raise _wrong("schedule", spec, str(error)) from error
    return schedule


def _make(
    section: str,
    spec: OptimizerSpec | ScheduleSpec,
    make: Callable[..., Any],
    first: object,
    given: Mapping[str, Any],
) -> Any:
    arguments = {**given, **spec.options}
    parameters = list(_parameters(make).values())[1:]
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if parameters and not any(p.kind == p.VAR_KEYWORD for p in parameters):
        _check_names(section, spec, arguments, named)
    missing = [p for p in parameters if p.default is p.empty and p.name in named - set(arguments)]
    if missing:
        names = ", ".join(f"{section}.options.{p.name}" for p in missing)
        raise _wrong(section, spec, f"needs more arguments: set {names}")
    try:
        return make(first, **arguments)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _wrong(section, spec, f"refuses its arguments: {reason}") from error


def _check_names(
    section: str, spec: OptimizerSpec | ScheduleSpec, given: Mapping[str, Any], known: Collection[str]
) -> None:
    for name, value in given.items():
        if name not in known:
            options = sorted({*known} - {"lr", "weight_decay"})
            path = f"{section}.options.{name}" if name in spec.options else f"{section}.{name}"
            message = f"{spec.name} has no such argument (it has {', '.join(options) or 'none'})"
            raise single(message, path=path, value=value, suggestion=did_you_mean(name, options))


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):  # of C code
        return {}


def _required(step: Callable[..., Any] | None) -> bool:
    """Whether a method ``step`` needs an argument beside ``self``."""
    own = [] if step is None else list(_parameters(step).values())[1:]
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in own)


def _wrong(section: str, spec: OptimizerSpec | ScheduleSpec, message: str) -> SpecError:
    return single(message, path=f"{section}.name", value=spec.name)
