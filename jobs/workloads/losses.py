"""The loss of classification and of language models with its two regularizers; what any loss must be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.workloads.base import Workload
from jobs.workloads.errors import WorkloadError


def loss_of(workload: Workload, model: nn.Module, batch: Any) -> Tensor:
    """The workload's loss of a batch, a tensor of one number that has a gradient.

    Raises:
        WorkloadError: it is something else.
    """
    loss = workload.loss(model, batch)
    number = isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point()
    if number and (loss.requires_grad or not torch.is_grad_enabled()):
        return loss if loss.ndim == 0 else loss.reshape(())
    name = f"{type(workload).__module__}:{type(workload).__qualname__}"
    raise WorkloadError(
        f"workload {name}: loss() must return a scalar tensor, the mean over the batch, {_not(loss)}"
    )


def _not(loss: Any) -> str:
    """What was returned instead, and how to correct it."""
    if not isinstance(loss, Tensor):
        kind = type(loss).__name__
        if isinstance(loss, int | float) or hasattr(loss, "dtype"):
            return f"not a {kind}: return the tensor itself, without .item(), float() or .numpy()"
        if loss is None:
            return "not None: it has no return statement"
        return f"not a {kind}: return the loss alone"
    if loss.numel() != 1:
        return f"not a tensor of shape {tuple(loss.shape)}: return loss.mean()"
    if not loss.is_floating_point():
        return f"not one of {loss.dtype}"
    return (
        "not one without a gradient: compute it from the model's output, without detach() or no_grad(), and "
        "leave some parameters of the model trainable"
    )


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
