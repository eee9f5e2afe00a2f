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


@torch.no_grad()
def shrink_(parameters: Sequence[Tensor], amount: float) -> None:
    """Divides each weight by ``1 + amount``: the proximal step of the L2 penalty ``amount / 2 * w^2``."""
    if amount > 0 and parameters:
        torch._foreach_div_(list(parameters), 1.0 + amount)


def elastic_net_(parameters: Sequence[Tensor], *, l1: float, l2: float) -> None:
    """The proximal step of ``l1 * |w| + l2 / 2 * w^2`` (Parikh and Boyd, section 6.5.3)."""
    soft_threshold_(parameters, l1)
    shrink_(parameters, l2)


def orthogonal_penalty(parameters: Sequence[Tensor]) -> Tensor:
    """Sum over matrices of ``||W W^T - I||^2`` (Frobenius), W taken as [rows, the rest], the flat way round.

    Bansal et al., "Can We Gain More from Orthogonality Regularizations ..." (2018), section 3.1. Computed in
    float32 whatever autocast says. 0-dim, differentiable.
    """
    total = torch.zeros((), device=parameters[0].device if parameters else None)
    with torch.autocast(total.device.type, enabled=False):
        for parameter in parameters:
            matrix = parameter.float().flatten(1)
            flat = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            gram = flat @ flat.T
            total = total + (gram - torch.eye(len(gram), device=gram.device)).square().sum()
    return total


@torch.no_grad()
def gradient_noise_(gradients: Sequence[Tensor], *, std: float, seed: int) -> None:
    """Adds Gaussian noise, the same on every rank with the same seed; the global generators are not used.

    Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks" (2015).
    """
    generators: dict[torch.device, torch.Generator] = {}
    for gradient in gradients:
        if gradient.device not in generators:
            generators[gradient.device] = torch.Generator(gradient.device).manual_seed(seed)
        noise = torch.empty_like(gradient).normal_(std=std, generator=generators[gradient.device])
        gradient.add_(noise)
