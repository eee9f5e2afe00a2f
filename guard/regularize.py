"""Decoupled regularizers: applied to the weights after the optimizer's step, as AdamW applies its decay.

Decoupled form: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), section 2.
Soft threshold: Parikh and Boyd, "Proximal Algorithms" (2014), section 6.5.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def pull_(parameters: Sequence[Tensor], anchors: Sequence[Tensor], amount: float) -> None:
    """Moves each parameter by ``amount`` (0 to 1) of the way to its anchor: the step of an L2 penalty."""
    if amount > 0 and parameters:
        torch._foreach_lerp_(list(parameters), list(anchors), amount)


@torch.no_grad()
def soft_threshold_(parameters: Sequence[Tensor], amount: float) -> None:
    """Shrinks each weight by ``amount`` and stops at zero: the proximal step of an L1 penalty."""
    if amount <= 0:
        return
    for parameter in parameters:
        if parameter.is_complex():
            parameter.copy_(parameter.sgn() * (parameter.abs() - amount).clamp_(min=0))
        else:
            parameter.copy_(torch.nn.functional.softshrink(parameter, amount))
