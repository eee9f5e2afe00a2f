"""A gradient's elements as one dense real tensor that shares its memory, whatever kind of tensor it is."""

from __future__ import annotations

import torch
from torch import Tensor

from guard.observe.shards import local


def elements(gradient: Tensor) -> Tensor:
    """What ``gradient`` stores on this rank: to scale these elements in place is to scale the gradient.

    Of a sharded gradient it is this rank's shard, of a sparse one the values (to be read once they are
    coalesced: an index that is stored twice has two parts of one value), of a complex one real and imaginary
    parts.
    """
    part = local(gradient)
    if part.is_sparse:
        part = part._values()
    return torch.view_as_real(part) if part.is_complex() else part


def coalesce_(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Gives ``parameter`` its sparse ``gradient`` with each index stored once, and returns that."""
    if not gradient.is_coalesced():
        parameter.grad = gradient = gradient.coalesce()
    return gradient
