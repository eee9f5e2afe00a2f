"""How long the first steps should have been: the loss of the batch on the way back to the first weights.

Where a rate is too high, the way that the weights have gone leads down at its beginning and past the bottom
further on. The share of it at which the loss is lowest is what the rate should have been, about.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guard.act import rng
from guard.beside import loss_beside
from guard.parts import StepParts

_SHARES = tuple(3.0**-power for power in range(9))
"""Down to a rate that is 6,561 times too high."""
_LEAST = 0.001
"""A fall by less than this share of the loss is none: then the way shows nothing."""


class WayBack:
    """Measures it, where the loop passes a closure and the weights are whole on each rank."""

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts

    def share(self) -> float | None:
        """Of the way since the weights were measured last, as a rule the first ones, where the loss is
        lowest; None where that cannot be measured, or it falls nowhere.

        Collective: all ranks call it on the same verdict. The weights are afterwards what they were, to the
        bit. Memory: a copy of them.
        """
        parts = self._parts
        able = parts.search.has_closure and parts.observer.shards is None and parts.config.mode == "exact"
        present, first = ([], []) if parts.state.displacement is None else parts.state.displacement.way()
        if not able or not present:
            return None
        losses = self._losses(present, first)
        rows = parts.agreement.exchange([math.nan if loss is None else loss for loss in losses])
        *on_the_way, first = rows.mean(0).tolist()
        known = [(loss, share) for loss, share in zip(on_the_way, _SHARES, strict=True) if loss < math.inf]
        lowest, share = min(known, default=(math.nan, 1.0))
        return share if first - lowest > _LEAST * abs(first) else None

    @torch.no_grad()
    def _losses(self, present: list[Tensor], first: list[Tensor]) -> list[float | None]:
        """At each share of the way, and at its beginning."""
        kept, generators = [weight.clone() for weight in present], rng.capture()
        losses = []
        try:
            for share in (*_SHARES, 0.0):
                torch._foreach_copy_(present, first)
                torch._foreach_lerp_(present, kept, share)
                losses.append(loss_beside(self._parts.replayer.model, self._parts, generators=generators))
        finally:
            torch._foreach_copy_(present, kept)
        return losses
