"""Mixed precision with a GradScaler: it handles its own overflows, and skips never change its scale."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer


class ScalerAdapter:
    """Backward, unscale and step with or without a GradScaler."""

    def __init__(self, scaler: torch.amp.GradScaler | None, optimizer: Optimizer) -> None:
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._optimizer = optimizer

    @property
    def active(self) -> bool:
        """Whether the loss is scaled."""
        return self._scaler is not None

    def scale(self, loss: Tensor) -> Tensor:
        return loss if self._scaler is None else self._scaler.scale(loss)

    def factor(self) -> float:
        """What the loss is multiplied by for backward."""
        return 1.0 if self._scaler is None else float(self._scaler.get_scale())

    def unscale(self) -> bool:
        """Divides the gradients by the scale; true when they overflowed and a lower scale may fix it.

        Below a scale of 1 the loss is no longer magnified: an overflow is then the gradient's own.
        """
        if self._scaler is None:
            return False
        if self._scaler._per_optimizer_states[id(self._optimizer)]["stage"] is OptState.READY:
            self._scaler.unscale_(self._optimizer)  # else the loop has done so already
        found = self._scaler._found_inf_per_device(self._optimizer)
        return any(bool(flag.item()) for flag in found.values()) and self.factor() >= 1.0

    def step(self) -> None:
        """Steps the optimizer; after an overflow the scaler does not."""
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)

    def update(self) -> None:
        """After ``step``: adjusts the scale."""
        if self._scaler is not None:
            self._scaler.update()

    def forget(self) -> None:
        """Ends a step that the guard skipped: neither the scale nor its growth count changes."""
        if self._scaler is not None:
            self._scaler._per_optimizer_states.pop(id(self._optimizer), None)
