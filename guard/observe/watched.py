"""Which parameters are watched: those that the optimizer steps, as its groups have them at each step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import is_
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

_WRAPPERS = re.compile(r"(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
Number = TypeVar("Number", np.float64, np.int64)


class Watched:
    """The parameters in the optimizer's groups, in the model's order, those outside the model last.

    Layers that are unfrozen, groups that are added and parameters that are replaced later are found when they
    are. A parameter that never required a gradient is not watched; one that is frozen later still is.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._groups: list[list[Tensor]] = []
        self._idle: list[Tensor] = []
        self._names: dict[int, str] = {}

    @property
    def changed(self) -> bool:
        """Whether ``named`` would return others than it did last."""
        groups = self._optimizer.param_groups
        if len(groups) != len(self._groups) or (self._idle and any(p.requires_grad for p in self._idle)):
            return True
        for known, group in zip(self._groups, groups, strict=True):
            now = group["params"]
            if len(known) != len(now) or not all(map(is_, known, now)):
                return True
        return False

    def named(self) -> dict[str, Tensor]:
        """The parameters to watch from now on, by name."""
        self._groups = [list(group["params"]) for group in self._optimizer.param_groups]
        own = {id(parameter): name for name, parameter in parameter_names(self._model).items()}
        places = {
            id(parameter): f"param_groups.{g}.{i}"
            for g, group in enumerate(self._groups)
            for i, parameter in enumerate(group)
        }
        trained = {id(parameter): parameter for group in self._groups for parameter in group}
        order = [*(i for i in own if i in trained), *(i for i in trained if i not in own)]
        watched = [i for i in order if i in self._names or trained[i].requires_grad]
        self._idle = [parameter for i, parameter in trained.items() if i not in set(watched)]
        self._names = {i: own.get(i) or self._names.get(i, places[i]) for i in watched}
        return {self._names[i]: trained[i] for i in watched}


def remapped(values: NDArray[Number], origins: Sequence[int]) -> NDArray[Number]:
    """One value a parameter, reordered: the value at each former index, 0 where that is -1 (a new one)."""
    indices = np.asarray(origins, dtype=np.int64)
    return np.where(indices >= 0, values[np.maximum(indices, 0)] if len(values) else 0, 0).astype(
        values.dtype
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside DDP and torch.compile."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def parameter_names(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by the name they have in the user's model, whatever it is wrapped in."""
    named = unwrap(model).named_parameters()
    return {clean_name(name): parameter for name, parameter in named}


def clean_name(name: str) -> str:
    """Without what ``torch.compile``, activation checkpointing and FSDP insert for a wrapped submodule."""
    return _WRAPPERS.sub("", name)
