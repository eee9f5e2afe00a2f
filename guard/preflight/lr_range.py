"""The learning-rate range test: raise the rate batch by batch, and see where the loss falls and blows up.

Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3, with the geometric growth
of the rate that is usual today.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.observe.watched import unwrap
from guard.preflight.run import generators_kept

_SMOOTHING = 0.8
"""A mean over about 1 / (1 - 0.8) = 5 batches, bias-corrected as in Adam: one batch's loss is noisy."""
_DIVERGED = 4.0
"""The loss blew up at four times its lowest, the rule of fastai's finder."""
_SAFETY = 10.0
"""The suggestion is a tenth of the rate of the lowest loss, as in fastai: there the loss still falls."""


@dataclass(frozen=True, slots=True)
class LrRange:
    """What the test measured.

    Attributes:
        rates: learning rate of each step.
        losses: smoothed training loss of each step, nan where it was not finite.
        suggested: a rate to start with: a tenth of the one where the loss was lowest; None if it never fell.
        largest: the last rate before the loss blew up; None if it never did.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggested: float | None
    largest: float | None


def learning_rate_range(
    model: nn.Module,
    loss: Callable[[nn.Module, int], Tensor],
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 40,
) -> LrRange:
    """Trains a copy of the model with a rate that grows by a constant factor; the model itself is untouched.

    Args:
        model: the module, or its DDP wrapper.
        loss: the scalar loss of the copy on batch number 0, 1, ...
        optimizer: makes the optimizer of the copy.
        lowest: rate of the first step.
        highest: rate of the last step, unless the loss blows up before.
        steps: batches to use, at least 2.

    Raises:
        ValueError: fewer than 2 steps, or the rates do not rise.
    """
    if steps < 2 or not 0 < lowest < highest:
        raise ValueError(f"needs 2 steps or more and 0 < lowest < highest, not {steps}, {lowest}, {highest}")
    bare = unwrap(model)
    devices = sorted({p.device.index or 0 for p in bare.parameters() if p.device.type == "cuda"})
    rates = [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]
    with generators_kept(devices), torch.enable_grad():
        twin = copy.deepcopy(bare)
        losses = _climb(twin, loss, optimizer(twin), rates)
    return _read(rates[: len(losses)], losses)


def _climb(
    twin: nn.Module, loss: Callable[[nn.Module, int], Tensor], optimizer: Optimizer, rates: Sequence[float]
) -> list[float]:
    """The smoothed loss of each step, up to the one where it blew up."""
    losses: list[float] = []
    average = 0.0
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        value = loss(twin, step)
        current = float(value.detach())
        average = _SMOOTHING * average + (1 - _SMOOTHING) * current
        smooth = average / (1 - _SMOOTHING ** (step + 1))
        losses.append(smooth)
        if not math.isfinite(current) or (step and current > _DIVERGED * min(losses)):
            break
        value.backward()
        optimizer.step()
    return losses


def _read(rates: Sequence[float], losses: Sequence[float]) -> LrRange:
    finite = [value if math.isfinite(value) else math.nan for value in losses]
    known = [(value, rate) for value, rate in zip(finite, rates, strict=True) if not math.isnan(value)]
    lowest, at = min(known, default=(math.nan, 0.0))
    fell = bool(known) and lowest < 0.99 * known[0][0]
    stopped = math.isnan(finite[-1]) or finite[-1] > 1.5 * lowest
    largest = rates[-2] if stopped and len(rates) > 1 else None
    return LrRange(tuple(rates), tuple(finite), at / _SAFETY if fell else None, largest)
