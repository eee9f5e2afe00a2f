"""One pass over the gradients: the global norm, every parameter's norm and the finite check.

The finite check is free: NaN and infinity propagate into the norms.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from guard.observe.gradients import coalesce_, elements
from guard.observe.norms import Places, square_pieces, sum_pieces
from guard.observe.shards import Shards
from guard.types import Floats, Observation


class Observer:
    """Measures the gradients of a fixed list of named parameters."""

    def __init__(self, named: dict[str, Tensor]) -> None:
        self.names = [name for name, parameter in named.items() if parameter.requires_grad]
        self.parameters = [parameter for parameter in named.values() if parameter.requires_grad]
        self._complex = any(parameter.is_complex() for parameter in self.parameters)
        self.shards = Shards.of(self.parameters, self.names)
        self._owners: list[int] = []
        self._places: Places = np.zeros(0, dtype=np.intp)

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def drop_gradients(self) -> None:
        """Sets them to None: a later backward must not add to a bad one."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def observe(self) -> Observation:
        """Norms of the present gradients; non-finite ones give a non-finite norm, never an error.

        Where parameters are sharded it is collective: every rank calls it once a step.

        Raises:
            UnsupportedGradient: a gradient is sharded otherwise than its parameter.
        """
        pieces, owners = self.measure()
        return self.read(pieces.cpu().numpy(), owners)

    @torch.no_grad()
    def measure(self) -> tuple[Tensor, list[int]]:
        """The squared norms of all pieces, where the gradients are; and the parameter each belongs to."""
        present = [i for i, p in enumerate(self.parameters) if p.grad is not None and p.grad.numel()]
        pieces, owners = square_pieces([self._elements(i) for i in present])
        return pieces, [present[owner] for owner in owners]

    def read(self, pieces: Floats, owners: list[int]) -> Observation:
        """Norms from what ``measure`` returned, once it is on the host; collective where sharded."""
        with np.errstate(invalid="ignore", over="ignore"):
            if owners != self._owners:
                self._owners, self._places = owners, np.array(owners, dtype=np.intp)
            squares = sum_pieces(pieces, self._places, len(self.parameters))
            if self.shards is not None:
                squares = self.shards.sum(squares)
            return Observation(math.sqrt(squares.sum()), np.sqrt(squares))

    def _elements(self, index: int) -> Tensor:
        parameter = self.parameters[index]
        gradient = parameter.grad if self.shards is None else self.shards.gradient(index, parameter)
        if gradient is None:
            raise RuntimeError(f"the gradient of {self.names[index]} was dropped while it was measured")
        if gradient.is_sparse:
            return elements(coalesce_(parameter, gradient))
        return elements(gradient) if self._complex else gradient


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
    return {name.replace("_orig_mod.", ""): parameter for name, parameter in named}
