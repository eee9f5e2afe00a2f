"""Each rank's gradient norm under FSDP2, before the reduce-scatter that makes it that of a parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guard.observe.fsdp2 import fully_sharded, parameter_groups
from guard.observe.local_norms import By, LocalNorms
from guard.observe.norms import norm


class ShardedNorms(LocalNorms):
    """By the reduce-scatter of each group of parameters: its input is the whole gradient of this rank."""

    def __init__(self, groups: Sequence[Any]) -> None:
        super().__init__(None)
        for group in groups:
            reducer = group._reduce_scatter_comm
            inner = reducer.inner if isinstance(reducer, _Measured) else reducer  # of a guard before this one
            group._reduce_scatter_comm = _Measured(inner, self._measure)

    @torch.no_grad()
    def _measure(self, reducer: int, gradient: Tensor) -> None:
        if self._armed and gradient.dtype != torch.float16:  # which FSDP2 has divided by a power of two
            self._norms[reducer] = norm(gradient)


class _Measured:
    """In the place of FSDP2's own reduce-scatter, or the user's, which it calls."""

    def __init__(self, inner: Any, measure: Callable[[int, Tensor], None]) -> None:
        self.inner, self._measure = inner, measure

    def allocate(self, *arguments: Any, **named: Any) -> Tensor:
        made: Tensor = self.inner.allocate(*arguments, **named)
        return made

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        self._measure(id(self), input_tensor)
        # Reduce-scatter of the gradients of one group. FSDP2 calls it on every rank, in the same order.
        return self.inner(output_tensor, input_tensor, *arguments, **named)


def sharded_norms(parameters: Sequence[Tensor], model: nn.Module, _: By = "auto") -> ShardedNorms | None:
    """Those of FSDP2 or HSDP over all ranks; None for other layouts, in which no rank has a whole gradient.

    Args:
        parameters: the parameters to watch.
        model: as the user has it.
    """
    if not fully_sharded(parameters):
        return None
    groups = parameter_groups(model)
    known = all(hasattr(group, "_reduce_scatter_comm") for group in groups)
    return ShardedNorms(groups) if groups and known else None
