"""One pass over the gradients: the global norm, every parameter's norm and the finite check.

The finite check is free: NaN and infinity propagate into the norms.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from guard.observe.gradients import elements
from guard.observe.norms import Places, small_squares, square_pieces, sum_pieces
from guard.observe.shards import Declared, Shards, laid_out_otherwise, local
from guard.observe.watched import Watched
from guard.types import Floats, Observation


class Observer:
    """Measures the gradients of named parameters.

    Args:
        named: those that require a gradient are measured.
        watched: instead of ``named``; ``follow`` takes the present ones.
        declared: which plain parameters are parts of larger ones, as in ``Shards.of``.
    """

    def __init__(
        self,
        named: dict[str, Tensor] | None = None,
        watched: Watched | None = None,
        declared: Declared | None = None,
    ) -> None:
        self._watched, self._declared = watched, declared
        self.parameters: list[Tensor] = []
        """The same list for good, also where its members change."""
        found = watched.named() if watched is not None else named or {}
        self._take({name: p for name, p in found.items() if watched is not None or p.requires_grad})

    def _take(self, named: dict[str, Tensor]) -> None:
        self.names = list(named)
        self.parameters[:] = named.values()
        self._complex = any(parameter.is_complex() for parameter in self.parameters)
        self.shards = Shards.of(self.parameters, self.names, self._declared)
        self.has_gradients = False
        """Whether there was any gradient in the last measurement."""
        self._each = list(range(len(self.parameters)))
        self._owners: list[int] = []
        self._places: Places = np.zeros(0, dtype=np.intp)

    @property
    def changes(self) -> bool:
        """Whether the optimizer steps other parameters than are measured."""
        return self._watched is not None and self._watched.changed

    def follow(self) -> list[int] | None:
        """Takes what the optimizer steps now.

        Returns:
            For each parameter its index so far, -1 for a new one; None where they are the same as before.
        """
        if self._watched is None or not self.changes:
            return None
        former = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        named = self._watched.named()
        origins = [former.get(id(parameter), -1) for parameter in named.values()]
        if origins == list(range(len(former))):
            return None
        self._take(named)
        return origins

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def misplaced(self) -> bool:
        """Whether ``measure`` has gradients to redistribute."""
        return self.shards is not None and laid_out_otherwise(self.parameters)

    @torch.no_grad()
    def clear_gradients(self) -> None:
        """Sets them to zero, in place: a CUDA graph, or the user, may write to the same memory again."""
        for gradient in self.gradients():
            gradient.zero_()

    @torch.no_grad()
    def observe(self) -> Observation:
        """Norms of the present gradients; non-finite ones give a non-finite norm, never an error.

        Where parameters are sharded it is collective: every rank calls it once a step.
        """
        pieces, owners = self.measure()
        return self.read(pieces.cpu().numpy(), owners)

    def measure(self) -> tuple[Tensor, list[int]]:
        """The squared norms of all pieces, where the gradients are; and the parameter each belongs to.

        Collective where a gradient is laid out otherwise than its parameter (``misplaced``).
        """
        if self.shards is None and not self._complex:
            gradients = [gradient for p in self.parameters if (gradient := p.grad) is not None]
            if len(gradients) == len(self._each) and (pieces := small_squares(gradients)) is not None:
                self.has_gradients = True
                return pieces, self._each
        return self._measure_any()

    @torch.no_grad()
    def _measure_any(self) -> tuple[Tensor, list[int]]:
        """The same, of gradients of any kind."""
        if self.shards is not None:
            self.shards.redistribute(self.parameters)
        plain, present, found = self.shards is None and not self._complex, [], []
        for i, parameter in enumerate(self.parameters):
            gradient = parameter.grad
            if gradient is not None and gradient.numel():
                present.append(i)
                found.append(gradient if plain and not gradient.is_sparse else self._elements(i, gradient))
        self.has_gradients = bool(present)
        pieces, owners = square_pieces(found)
        whole = len(present) == len(self.parameters)
        return pieces, owners if whole else [present[owner] for owner in owners]

    def read(self, pieces: Floats, owners: list[int]) -> Observation:
        """Norms from what ``measure`` returned, once it is on the host; collective where sharded."""
        if owners == self._each:
            squares = pieces.astype(np.float64, copy=False)
        else:
            if owners != self._owners:
                self._owners, self._places = owners, np.array(owners, dtype=np.intp)
            squares = sum_pieces(pieces, self._places, len(self.parameters))
        if self.shards is not None:
            squares = self.shards.sum(squares)
        return Observation(math.sqrt(np.add.reduce(squares)), np.sqrt(squares))

    def _elements(self, index: int, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            raise RuntimeError(f"the gradient of {self.names[index]} was dropped while it was measured")
        if self.shards is not None:
            gradient = local(gradient)
        if gradient.is_sparse:
            return elements(gradient.coalesce())  # a copy: SGD adds one that is coalesced in another order
        return elements(gradient) if self._complex else gradient
