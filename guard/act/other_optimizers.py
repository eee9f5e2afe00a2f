"""Steps of an optimizer that has no guard, over parameters that a guard watches."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Watcher(Protocol):
    """What knows the parameters of a guard."""

    parameters: Sequence[Tensor]
    inside: bool
    """Whether the guard is stepping its own optimizer, of which another may be a part."""

    def on_other_step(self, optimizer: Optimizer, *, own_gradients: bool) -> None:
        """``optimizer`` is about to step some of ``parameters``; a closure computes its own gradients."""
        ...


class GuardedStep:
    """A hook on the step of an optimizer that has a guard."""


_watchers: weakref.WeakSet[Any] = weakref.WeakSet()
_in_use: weakref.WeakSet[Any] = weakref.WeakSet()
"""Those that a garbage collection has shown to be more than garbage."""
_hooks: list[Any] = []
"""torch has one list of hooks for the optimizers of a process: hence one hook for all guards."""


def watch_others(watcher: Watcher) -> None:
    """Calls ``on_other_step`` for as long as ``watcher`` lives."""
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_on_step))
    _watchers.add(watcher)


def _on_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling() or not _watchers:
        return
    if any(isinstance(hook, GuardedStep) for hook in optimizer._optimizer_step_pre_hooks.values()):
        return
    if any(watcher not in _in_use for watcher in _concerned(optimizer)):
        gc.collect()  # a guard that the loop has dropped may be part of a cycle
        _in_use.update(_watchers)
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    for watcher in _concerned(optimizer):
        watcher.on_other_step(optimizer, own_gradients=closure is not None)


def _concerned(optimizer: Optimizer) -> list[Watcher]:
    watchers = list(_watchers)
    if any(watcher.inside for watcher in watchers):
        return []
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [watcher for watcher in watchers if not stepped.isdisjoint(map(id, watcher.parameters))]
