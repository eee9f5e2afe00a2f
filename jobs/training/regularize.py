"""The regularizers of a job: terms of the loss, gradient noise, and the proximal step on the weights."""

from __future__ import annotations

import fnmatch
import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from guard.act.regularize import elastic_net_, gradient_noise_, orthogonal_penalty
from guard.observe.shards import locals_of
from jobs.workloads.errors import WorkloadError

if TYPE_CHECKING:
    from jobs.spec.regularize import RegularizeSpec

_FIXED = ("label_smoothing", "z_loss", "dropout", "stochastic_depth")
_NOISE_DECAY = 0.55  # Neelakantan et al. (2015), section 3


class Regularizer:
    """Acts on this rank's copy of the model; every rank does the same, so that the copies stay equal.

    Args:
        spec: the regularizers.
        model: the bare module.
        total_steps: of the run, for schedules.
        seed: of the gradient noise.

    Raises:
        WorkloadError: a pattern matches no parameter.
    """

    def __init__(self, spec: RegularizeSpec, model: nn.Module, *, total_steps: int, seed: int) -> None:
        self._spec, self._total_steps, self._seed = spec, total_steps, seed
        self._all = [p for p in model.parameters() if p.requires_grad]
        self._selected = _selected(spec, model)
        self._matrices = [p for p in self._selected if p.ndim >= 2]

    def strength(self, step: int) -> float:
        """The factor of l1, l2 and orthogonal after ``step`` steps: 0 to 1."""
        spec = self._spec
        rise = min(1.0, (step + 1) / spec.warmup_steps) if spec.warmup_steps else 1.0
        progress = min(1.0, step / max(1, self._total_steps))
        fall = {"none": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
        return rise * fall[spec.fade]

    def strengths(self, step: int) -> dict[str, float]:
        """The strengths after ``step`` steps, by the spec's names; only those that the spec sets."""
        spec, factor = self._spec, self.strength(step)
        moving = {name: getattr(spec, name) for name in ("l1", "l2", "orthogonal")}
        fixed = {name: getattr(spec, name) for name in _FIXED}
        noise = {"gradient_noise": spec.gradient_noise * (1 + step) ** -_NOISE_DECAY}
        now = {name: value * factor for name, value in moving.items() if value}
        return now | {name: value for name, value in {**fixed, **noise}.items() if value}

    def penalty(self, step: int) -> Tensor | None:
        """The term to add to the loss of every micro-batch, 0-dim; None without one."""
        if not self._spec.orthogonal:
            return None
        return self._spec.orthogonal * self.strength(step) * orthogonal_penalty(self._matrices)

    def noise_(self, step: int, loss_scale: float) -> None:
        """Adds noise to the gradients, once for each optimizer step, after the last backward.

        The gradients are equal on all ranks by then; the noise is too.

        Args:
            step: optimizer steps so far.
            loss_scale: that the gradients still carry.
        """
        variance = self._spec.gradient_noise
        if variance:
            std = math.sqrt(variance) * (1 + step) ** (-_NOISE_DECAY / 2) * loss_scale
            seed = np.random.SeedSequence([self._seed, step]).generate_state(1, np.uint64)[0]
            gradients = [p.grad for p in self._all if p.grad is not None]
            gradient_noise_(gradients, std=std, seed=int(seed))

    def after_step_(self, step: int, lr: float) -> None:
        """The proximal step; call it only when the optimizer's step was applied.

        Args:
            step: optimizer steps before that one.
            lr: the rate of that one.
        """
        factor = lr * self.strength(step)
        elastic_net_(locals_of(self._selected), l1=factor * self._spec.l1, l2=factor * self._spec.l2)


def _selected(spec: RegularizeSpec, model: nn.Module) -> list[Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not spec.parameters:
        return [p for p in named.values() if p.ndim >= 2]
    for index, pattern in enumerate(spec.parameters):
        if not fnmatch.filter(named, pattern):
            some = ", ".join(list(named)[:6])
            raise WorkloadError(
                f'regularize.parameters[{index}] = "{pattern}": matches no parameter; there are {some} ...'
            )
    return [p for name, p in named.items() if any(fnmatch.fnmatchcase(name, x) for x in spec.parameters)]
