"""What an outlier that is applied would leave in the optimizer: taken out again after its step.

A finite spike that is clipped still fills one layer's second moment, where that layer is small beside the
others, and makes its updates small for dozens of steps (Huang et al. 2025, "SPAM", section 3).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

_MOMENTS = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"}
)
"""Of torch's optimizers; anything else in a state may be weights or counters, and stays."""


def kept_moments(optimizer: Optimizer, step: Callable[[], None]) -> None:
    """Runs one ``step``: the optimizer makes its update, and its moments are as before it."""
    found = _moments(optimizer)
    saved = [moment.clone() for moment in found]
    step()
    with torch.no_grad():
        for moment, before in zip(found, saved, strict=True):
            moment.copy_(before)


def _moments(optimizer: Optimizer) -> list[Tensor]:
    named = (item for state in optimizer.state.values() for item in state.items())
    return [value for name, value in named if name in _MOMENTS and isinstance(value, Tensor)]
