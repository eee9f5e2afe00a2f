"""The interface of all kinds of clipping, and what they share.

A step is clipped in two parts. ``plan`` uses only norms that are known already, sets the limit, and learns
from the step if it is accepted; it touches no gradient. ``clip_``, called only when the step is
really applied, changes the gradients, and only those that exceed a limit. Everything is computed from
all-reduced gradients and numbers that all ranks share, so every rank clips alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guard.config import ClipConfig
from guard.observe.gradients import coalesce_, elements
from guard.observe.shards import Shards
from guard.types import Floats, Observation, Plan

EPSILON = 1e-6
"""That of ``torch.nn.utils.clip_grad_norm_``."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a kind makes its plan from; see ``Clipper.plan``."""

    seen: Observation
    typical: float | None
    accepted: bool


class Clipper:
    """Kind ``off``, and the base of the others: the global norm is limited on suspect steps alone.

    A kind makes a plan of a limit or of factors (``_plan``), or reads the gradients and changes them itself
    (``_clip_elements_``).
    """

    def __init__(self, config: ClipConfig, parameters: Sequence[Tensor]) -> None:
        self.config = config
        self._take(parameters)

    def _take(self, parameters: Sequence[Tensor], shards: Shards | None = None) -> None:
        self._parameters = list(parameters)
        self._shards = shards or Shards.of(self._parameters)
        self._special = self._shards is not None or any(p.is_complex() for p in self._parameters)

    def follow(
        self, parameters: Sequence[Tensor], origins: Sequence[int], shards: Shards | None = None
    ) -> None:
        """Clips these from now on; ``origins``: the former index of each, -1 of a new one."""
        self._take(parameters, shards)
        self._remap(origins)

    def expect_change(self) -> None:
        """The norms change on purpose: a limit that hangs on their first level is learned anew."""

    def plan(
        self, seen: Observation, *, typical: float | None = None, suspect: bool = False, accepted: bool = True
    ) -> Plan:
        """How to clip this step's gradients. Call once a step: it learns from an accepted one.

        Args:
            seen: the norms of the gradients as they are.
            typical: median of the accepted global norms, None while there are too few.
            suspect: whether the step is suspect, and so held to ``suspect_factor`` times the typical norm.
            accepted: whether the step is normal. Nothing is learned from others, nor from non-finite norms.
        """
        learn = accepted and not suspect and math.isfinite(seen.grad_norm)
        recent = typical if typical is not None and typical > 0 else None
        plan = self._plan(Step(seen, recent, learn))
        if not suspect or recent is None:
            return plan
        close = self.config.suspect_factor * recent
        return replace(plan, limit=close if plan.limit is None else min(close, plan.limit))

    @torch.no_grad()
    def clip_(self, plan: Plan, fold: Callable[[float], bool] | None = None) -> float | None:
        """Clips the gradients in place, as planned.

        Args:
            fold: takes over the factor for all gradients, if it can (``guard.act.fused``): they are then
                multiplied inside the optimizer's step.

        Returns:
            The global norm after clipping divided by that before; None where no gradient was changed.
        """
        seen, factors = plan.seen, plan.factors
        ratio = self._clip_elements_(seen) if factors is None else self._scale_each_(seen, factors)
        factor = coefficient(seen.grad_norm * (1.0 if ratio is None else ratio), plan.limit)
        if factor == 1.0:
            return ratio
        if fold is None or not fold(factor):
            scale_(self._gradients(), factor)
        return factor if ratio is None else factor * ratio

    def _plan(self, step: Step) -> Plan:
        """The kind's own plan; learns from the step if it is accepted."""
        return Plan(step.seen)

    def _clip_elements_(self, seen: Observation) -> float | None:
        """For kinds that must read the gradients: clips them, and returns what ``clip_`` does."""

    def _scale_each_(self, seen: Observation, factors: Floats) -> float | None:
        changed = np.flatnonzero(factors != 1.0).tolist()
        if not changed or not math.isfinite(seen.grad_norm):
            return None
        held = [i for i in changed if self._has_gradient(i)]
        if held:
            torch._foreach_mul_([self._gradient(i) for i in held], [float(factors[i]) for i in held])
        return ratio_of(seen.layer_norms * factors, seen)

    def _gradients(self) -> list[Tensor]:
        """The elements on this rank of those that exist."""
        return [self._elements(p.grad) for p in self._parameters if p.grad is not None]

    def _elements(self, gradient: Tensor) -> Tensor:
        return elements(gradient) if gradient.is_sparse or self._special else gradient

    def _has_gradient(self, index: int) -> bool:
        """Whether this rank holds at least one element of it."""
        gradient = self._parameters[index].grad
        return gradient is not None and self._elements(gradient).numel() > 0

    def _gradient(self, index: int) -> Tensor:
        gradient = self._parameters[index].grad
        if gradient is None:
            raise RuntimeError(f"parameter {index} has a gradient norm but no gradient any more")
        if gradient.is_sparse:
            gradient = coalesce_(self._parameters[index], gradient)
        return self._elements(gradient)

    def state_dict(self) -> dict[str, Any]:
        """All that it remembers, as plain numbers and lists, with the kind that remembers it."""
        return {"kind": self.config.kind, **self._memory()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``; with another kind's state it starts from the beginning."""
        if state["kind"] == self.config.kind:
            self._recall(state)

    def _memory(self) -> dict[str, Any]:
        return {}

    def _remap(self, origins: Sequence[int]) -> None:
        """Reorders what it remembers of each parameter."""

    def _recall(self, state: dict[str, Any]) -> None:
        """Restores what ``_memory`` returned."""


def coefficient(norm: float, limit: float | None) -> float:
    """torch's ``min(1, limit / (norm + 1e-6))``; exactly 1.0 for a norm within the limit or not finite."""
    if limit is None or not math.isfinite(norm) or norm <= limit:
        return 1.0
    return limit / (norm + EPSILON)


def scale_(gradients: Sequence[Tensor], factor: float) -> None:
    """Multiplies the gradients in place; touches nothing when the factor is 1."""
    if factor != 1.0:
        torch._foreach_mul_(list(gradients), factor)


def ratio_of(norms_after: Floats, seen: Observation) -> float:
    """The global norm that these layer norms make, divided by what it was."""
    return float(np.linalg.norm(norms_after)) / seen.grad_norm
