"""How far the weights moved: damage to a weight, a moment or the learning rate shows here first.

The distance is from a copy of the weights to where they are now, so it includes everything that happened in
between, also what no gradient explains. Copy and distance are one pass, made once in a few steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from guard.observe.gradients import elements
from guard.observe.norms import ordered_squares, square_norms, sum_pieces
from guard.observe.own_rate import OwnRate, declared_rate, step_size
from guard.observe.shards import Shards, local
from guard.observe.window_rate import WindowRate
from guard.types import Floats, Movement, Travelled

GROUP_ELEMENTS = 1 << 18
"""Weights that are compared and copied at a time: 1 MB of float32, which stays in the processor's cache."""

_FAR = 3.0
_ONE_WAY = 5
"""sqrt(25): what a single step is longer by than the mean of 25 random ones."""


class Displacement:
    """The distance that the weights have moved since they were last measured.

    Where the optimizer's rate is its own and unknown (``OwnRate.hidden``), ``per_lr`` is None.

    Args:
        parameters: the weights to watch; a copy of them (of sharded ones: of this rank's part) is kept.
        optimizer: whose learning rate the distance is divided by, where ``stepped`` was not called.
        every_steps: optimizer steps between two measurements.
        shards: how they are divided over the ranks, where that is not seen from the parameters.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        optimizer: Optimizer,
        every_steps: int,
        shards: Shards | None = None,
    ) -> None:
        self._parameters = list(parameters)
        self._shards = shards or Shards.of(parameters)
        self._optimizer = optimizer
        self._every = every_steps
        self._places: list[int] = []
        self._groups: list[_Group] = []
        self._measured_at = 0
        self._saved: list[float] | None = None
        """What the first measurement after a resume would read, had the copy been saved."""
        self._rate = WindowRate()
        self._own = OwnRate(optimizer)
        self._last: Floats | None = None
        self._per_step = self._before = math.nan
        """Mean distance of a step, at the last measurement and at the one before."""

    def stepped(self, rate: float) -> None:
        """A step was applied with this learning rate; the schedule may change it before the next measure."""
        self._rate.add(rate * step_size(self._optimizer))

    @torch.no_grad()
    def start(self, step: int) -> None:
        """The present weights, after ``step`` steps, are good: distances start here."""
        self._measured_at, self._last, self._saved = step, None, None
        self._rate.clear()
        self._own.start()
        if self._places != self._present_places():
            self._regroup()
        for group in self._groups:
            group.save()

    def follow(self, parameters: Sequence[Tensor], step: int, shards: Shards | None = None) -> None:
        """Watches these weights from now on: distances start here."""
        self._parameters, self._shards = list(parameters), shards or Shards.of(parameters)
        self._places = []
        self.start(step)

    @torch.no_grad()
    def state_dict(self, *, measures: bool = False) -> dict[str, Any]:
        """All but the copy of the weights. A run that ``measures`` before its next step is resumed exactly:
        what that will read is saved too, but of shards. Else the first distance after a resume is short."""
        known = measures and self._shards is None and self._places == self._present_places()
        return {
            "measured_at": self._measured_at,
            "rates": self._rate.state_dict(),
            "per_step": [self._before, self._per_step],
            "pieces": self._pieces(follow=False).tolist() if known else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The weights must be those that were saved beside it, and ``start`` have been called with them."""
        self._measured_at = int(state["measured_at"])
        if "rates" not in state:
            return
        self._saved = state["pieces"]
        self._rate.load_state_dict(state["rates"])
        if self._saved is None:
            self._rate.clear()
        self._before, self._per_step = map(float, state["per_step"])

    def due(self, step: int) -> bool:
        """Whether the weights after ``step`` steps are to be measured."""
        return step - self._measured_at >= self._every or self._saved is not None

    @torch.no_grad()
    def measure(self, step: int) -> Movement:
        """The movement since the last measurement; the next one starts here.

        Where parameters are sharded, all ranks call it in the same step (see ``Shards``).
        """
        moving = self.launch(step)
        return self.read(moving, moving.pieces.cpu().numpy())

    @torch.no_grad()
    def launch(self, step: int) -> Moving:
        """The part of ``measure`` for which the host waits for no device; ``read`` is the other one."""
        steps, self._measured_at = max(1, step - self._measured_at), step
        if self._places != self._present_places():
            self.start(step)
            return Moving(steps, math.nan, torch.zeros(0))
        pieces = self._pieces(follow=True)
        if self._saved is not None and len(self._saved) == len(pieces):
            pieces.copy_(torch.tensor(self._saved, dtype=pieces.dtype))
        self._saved = None
        self._own.check()
        return Moving(steps, math.nan if self._own.hidden else self._window_rate(), pieces)

    def read(self, moving: Moving, pieces: Floats) -> Movement:
        """The movement, once the pieces are on the host."""
        if not len(pieces):
            return Movement(math.nan, None, None)
        self._last, weights = self._squares(pieces)
        with np.errstate(invalid="ignore", over="ignore"):
            distance, norm = math.sqrt(self._last.sum()), math.sqrt(weights.sum())
        steps, rate = moving.steps, moving.rate
        self._before, self._per_step = self._per_step, distance / steps
        return Movement(
            per_step=distance / steps,
            per_lr=distance / (rate * self._every) if rate > 0 else None,
            ratio=distance / steps / norm if norm > 0 else None,
        )

    def _window_rate(self) -> float:
        """A rate of the optimizer's own grows within the steps: all count."""
        if self._rate.empty:
            self._rate.add(declared_rate(self._optimizer) * step_size(self._optimizer))
        return self._rate.take(whole=self._own.found)

    @torch.no_grad()
    def distances(self, step: int) -> Floats | None:
        """Of each parameter, since the last measurement or, right after one, before it. Nothing is changed.

        Returns:
            One number a parameter; None where there is nothing to compare with.
        """
        squares = self._last if step == self._measured_at else None
        if squares is None and self._places == self._present_places():
            squares, _ = self._squares(self._pieces(follow=False).cpu().numpy())
        with np.errstate(invalid="ignore"):
            return None if squares is None else np.sqrt(squares)

    def travelled(self, step: int) -> Travelled | None:
        """The distance since the last measurement or, right after one, before it.

        None where nothing was measured, or all weights were zero. Collective where parameters are sharded.
        """
        distances = self.distances(step)
        if distances is None:
            return None
        norms = np.zeros(len(self._parameters))
        for group in self._groups:
            np.add.at(norms, group.owners, square_norms([elements(copy) for copy in group.copies]))
        norm = math.sqrt((norms if self._shards is None else self._shards.sum(norms)).sum())
        with np.errstate(invalid="ignore", over="ignore"):
            distance = math.sqrt(np.square(distances).sum())
        return Travelled(distance / norm, step - self._measured_at or self._every) if norm > 0 else None

    def way(self) -> tuple[list[Tensor], list[Tensor]]:
        """The present weights, in pieces, and those of the last measurement; empty where these are gone."""
        if self._places != self._present_places():
            return [], []
        pairs = [pair for group in self._groups for pair in zip(group.weights, group.copies, strict=True)]
        return [weight for weight, _ in pairs], [copy for _, copy in pairs]

    @contextmanager
    def on_purpose(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """What the guard itself does to these weights inside is no distance: the copies move along."""
        changed = {id(parameter) for parameter in parameters}
        ids = [id(parameter) for parameter in self._parameters]
        pairs = [
            (weight, copy, weight.clone())
            for group in self._groups
            for owner, weight, copy in zip(group.owners, group.weights, group.copies, strict=True)
            if ids[owner] in changed
        ]
        yield
        for weight, copy, before in pairs:
            copy.add_(weight - before)

    def moved_far(self, step: int) -> bool:
        """Whether the weights have moved farther than steps explain: one of them was wild.

        At most a step is five times the mean of 25, which point in different directions.
        """
        distances = self.distances(step)
        if distances is None:
            return False
        measured = step == self._measured_at
        steps = self._every if measured else step - self._measured_at
        usual = self._before if measured else self._per_step
        with np.errstate(invalid="ignore", over="ignore"):
            return bool(np.sqrt(np.square(distances).sum()) > _FAR * usual * (steps + _ONE_WAY))

    def _pieces(self, *, follow: bool) -> Tensor:
        """The squared distance of each piece of weight from its copy, which then follows if asked to; then
        the squared norms. Float64, one after the other, not read by the host."""
        moved, norms = [], []
        for group in self._groups:
            distances, weights = group.squares()
            moved.append(distances)
            norms.append(weights)
            if follow:
                group.save()
        parts = [*moved, *norms]
        if len({part.device for part in parts}) > 1:  # a model on several devices
            parts = [part.to(parts[0].device) for part in parts]
        return torch.cat(parts)

    def _squares(self, pieces: Floats) -> tuple[Floats, Floats]:
        """The squared distance of each parameter, and its squared norm."""
        owners = [owner for group in self._groups for owner in group.owners]
        moved, norms = np.split(pieces, 2)
        with np.errstate(invalid="ignore", over="ignore"):
            distances = sum_pieces(moved, owners, len(self._parameters))
            weights = sum_pieces(norms, owners, len(self._parameters))
        if self._shards is None:
            return distances, weights
        return self._shards.sum(distances), self._shards.sum(weights)  # all-reduces; all ranks come here

    def _present_places(self) -> list[int]:
        return [local(p).data_ptr() for p in self._parameters]

    def _regroup(self) -> None:
        """Views of the weights in groups of bounded size, each with room for its copy."""
        self._places = self._present_places()
        self._groups = []
        room = 0
        for i, parameter in enumerate(self._parameters):
            for piece in _pieces(local(parameter.detach())):
                if not self._groups or piece.numel() > room:
                    self._groups.append(_Group([], [], []))
                    room = GROUP_ELEMENTS
                self._groups[-1].add(i, piece)
                room -= piece.numel()


@dataclass(frozen=True, slots=True)
class Moving:
    """What is known of a movement before the host reads it.

    Attributes:
        steps: since the last measurement.
        rate: the learning rate of these steps (``WindowRate``); NaN where it is hidden.
        pieces: squared distances, then squared norms, float64; empty where there is nothing to compare with.
    """

    steps: int
    rate: float
    pieces: Tensor


@dataclass(frozen=True, slots=True)
class _Group:
    """Pieces of weights, the parameter that each belongs to, and their copies."""

    owners: list[int]
    weights: list[Tensor]
    copies: list[Tensor]

    def add(self, owner: int, piece: Tensor) -> None:
        self.owners.append(owner)
        self.weights.append(piece)
        self.copies.append(torch.empty_like(piece))

    def squares(self) -> tuple[Tensor, Tensor]:
        """The squared distance of each piece, and its squared norm; not read by the host."""
        differences = torch._foreach_sub(self.weights, self.copies)
        squares = ordered_squares([elements(piece) for piece in (*differences, *self.weights)])
        distances, weights = squares.chunk(2)
        return distances, weights

    def save(self) -> None:
        torch._foreach_copy_(self.copies, self.weights)


def _pieces(weight: Tensor) -> Sequence[Tensor]:
    if weight.numel() <= GROUP_ELEMENTS or not weight.is_contiguous():
        return (weight,)
    return weight.view(-1).split(GROUP_ELEMENTS)
