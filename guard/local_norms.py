"""Each rank's gradient norm before the all-reduce: it names the rank that a bad gradient came from.

Post-accumulate-grad hooks fire before DDP's reducer, while the gradient is still local and in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from guard.norms import norm


class LocalNorms:
    """Sums the squares of the local gradients as backward produces them.

    Args:
        parameters: the parameters to watch.
        model: asked whether this backward is the last of its accumulation window, when it is DDP-wrapped.
    """

    def __init__(self, parameters: Sequence[Tensor], model: nn.Module) -> None:
        self._model = model
        self._armed = False
        self._scale = 1.0
        self._norms: dict[int, Tensor] = {}
        self._handles: list[Any] = [
            parameter.register_post_accumulate_grad_hook(self._hook(i))
            for i, parameter in enumerate(parameters)
        ]

    def arm(self, wanted: bool, scale: float = 1.0) -> None:
        """Says before a backward whether its local norm is wanted, and how its loss is scaled."""
        last = not isinstance(self._model, DistributedDataParallel) or self._model.require_backward_grad_sync
        self._armed = wanted and last
        self._scale = scale
        self._norms = {}

    def take(self) -> float:
        """The local L2 norm of the last backward; NaN when it was not asked for."""
        return float(self.tensor()) / self._scale

    def tensor(self) -> Tensor:
        """The same where it was computed, 0-dim, and not divided by the scale: the host does not read it."""
        if not self._norms:
            return torch.tensor(math.nan)
        return torch.linalg.vector_norm(torch.stack(list(self._norms.values())))

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def measure(parameter: Tensor) -> None:
            gradient = parameter.grad
            if self._armed and gradient is not None and gradient.layout == torch.strided:
                self._norms[index] = norm(gradient)

        return measure
