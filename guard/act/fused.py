"""Clipping and skipping inside torch's fused optimizers, without a pass over the gradients or a host read.

A fused kernel divides the gradient by ``grad_scale`` while it reads it, and returns untouched everything when
``found_inf`` is exactly 1: the protocol that ``torch.amp.GradScaler`` uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

FUSED = (SGD, Adam, AdamW, Adagrad)


class FusedStep:
    """Passes a scale and a skip flag to the next step of an optimizer that supports them.

    Args:
        optimizer: any; see ``able``. Others ignore the attributes, or assert.
        scaled: whether a ``GradScaler`` steps it, which sets the attributes itself.
    """

    def __init__(self, optimizer: Optimizer, *, scaled: bool) -> None:
        self._optimizer: Any = optimizer
        self._scaled = scaled
        self._scale: Tensor | None = None
        self._skip: Tensor | None = None

    @property
    def able(self) -> bool:
        """Whether the optimizer is one of torch's own, fused in all its groups, on tensors that
        have no others inside, as DTensors do."""
        groups = self._optimizer.param_groups
        return (
            not self._scaled
            and type(self._optimizer) in FUSED
            and all(group.get("fused") for group in groups)
            and all(not hasattr(type(p), "__tensor_flatten__") for group in groups for p in group["params"])
        )

    def fold(self, factor: float) -> bool:
        """Makes the next step multiply its gradients by ``factor``; false where the caller must do it."""
        if not self.able:
            return False
        device = self._optimizer.param_groups[0]["params"][0].device
        self._scale = torch.full((), 1.0 / factor, device=device)  # torch.tensor would wait for the device
        return True

    def on_device(self, scale: Tensor | None, skip: Tensor) -> None:
        """The next step divides its gradients by ``scale`` unless ``skip`` is 1; both 0-dim float32."""
        self._scale, self._skip = scale, skip

    def armed(self) -> AbstractContextManager[None]:
        """Sets the attributes for the optimizer's step and removes them after it."""
        idle = self._scale is None and self._skip is None
        return nullcontext() if idle else self._armed()

    @contextmanager
    def _armed(self) -> Iterator[None]:
        self._optimizer.grad_scale, self._optimizer.found_inf = self._scale, self._skip
        try:
            yield
        finally:
            del self._optimizer.grad_scale, self._optimizer.found_inf
            self._scale = self._skip = None
