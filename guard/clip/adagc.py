"""Per-tensor adaptive clipping: each tensor's norm is held to a multiple of its own running mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from guard.clip.base import Clipper, Step, coefficient
from guard.config import ClipConfig
from guard.errors import GuardError
from guard.observe.watched import remapped
from guard.types import Plan


class AdaGcClipper(Clipper):
    """``adagc``: each tensor's norm is held to ``lambda_rel`` times the running mean of its clipped norms.

    Source: Wang et al., "AdaGC: Enhancing LLM Pretraining Stability via Adaptive Gradient Clipping" (2025),
    algorithm 1. During the warm-up the global norm is held to ``lambda_abs``, and each tensor's mean is the
    least norm that was left to it.

    Deviations: a norm of zero never enters, because a mean of zero would hold its tensor to zero for good (an
    expert without tokens, a layer that begins at zero); a tensor whose first gradient comes after the warm-up
    is held to ``lambda_abs``, and that norm begins its mean; only accepted finite norms enter.
    """

    def __init__(self, config: ClipConfig, parameters: Sequence[Tensor]) -> None:
        super().__init__(config, parameters)
        self._warmup_steps = config.warmup_steps or 100
        self._steps = 0
        self._means = np.zeros(len(self._parameters))

    def _plan(self, step: Step) -> Plan:
        seen, beta = step.seen, self.config.beta
        if not math.isfinite(seen.grad_norm):
            return Plan(seen)
        if self._steps < self._warmup_steps:
            plan = Plan(seen, limit=self.config.lambda_abs)
            kept = seen.layer_norms * coefficient(seen.grad_norm, plan.limit)
            means = np.minimum(self._means, kept)
        else:
            norms, known = seen.layer_norms, self._means > 0.0
            limits = np.where(known, self.config.lambda_rel * self._means, self.config.lambda_abs)
            factors = np.divide(limits, norms, out=np.ones_like(norms), where=norms > limits)
            plan = Plan(seen, factors=factors)
            kept = norms * factors
            means = beta * self._means + (1 - beta) * kept
        if step.accepted:
            self._steps += 1
            learned = np.where(self._means > 0.0, means, kept)
            self._means = np.where(kept > 0.0, learned, self._means)
        return plan

    def _remap(self, origins: Sequence[int]) -> None:
        self._means = remapped(self._means, origins)

    def _memory(self) -> dict[str, Any]:
        return {"steps": self._steps, "means": self._means.tolist()}

    def _recall(self, state: dict[str, Any]) -> None:
        if len(state["means"]) != len(self._means):
            saved, ours = len(state["means"]), len(self._means)
            raise GuardError(
                f"the saved state is of {saved} parameters, this model has {ours}: resume with the same model"
            )
        self._steps, self._means = int(state["steps"]), np.array(state["means"], dtype=np.float64)
