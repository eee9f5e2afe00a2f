"""The loss of classification and of language models, with its two regularizers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Mean cross-entropy in nats, computed in float32.

    Args:
        logits: [N, classes].
        targets: int64 [N], or shares of the classes, float [N, classes].
        label_smoothing: Szegedy et al., "Rethinking the Inception Architecture" (2016), section 7.
        z_loss: weight of the mean of log(Z)^2; Chowdhery et al., "PaLM" (2022), section 5.
    """
    logits = logits.float()
    loss = functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if z_loss:
        loss = loss + z_loss * torch.logsumexp(logits, dim=-1).square().mean()
    return loss
