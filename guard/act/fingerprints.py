"""The bits of a tensor as one number: a single flipped bit changes it, whatever the tensor's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What elements of so many bytes are added up as."""


def fingerprints(tensors: Sequence[Tensor]) -> Tensor:
    """The bits of each tensor as one wrapping int64 sum, [tensors], on the device of the first."""
    sums = [_words(tensor.detach()).sum(dtype=torch.int64) for tensor in tensors]
    if not sums:
        return torch.zeros(0, dtype=torch.int64)
    return torch.stack([value.to(sums[0].device) for value in sums])


def _words(tensor: Tensor) -> Tensor:
    """Its bits, in words of 8 bytes where they fit: these are added up ten times as fast."""
    elements = bits(tensor)
    size = elements.element_size()
    if elements.numel() * size % 8:
        return elements
    return (elements.clone() if elements.storage_offset() * size % 8 else elements).view(torch.int64)


def bits(tensor: Tensor) -> Tensor:
    """Its elements as integers of their size, [elements]."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.contiguous().reshape(-1).view(_BITS[real.element_size()])


def is_plain(tensor: Any) -> TypeGuard[Tensor]:
    """Whether it is a whole dense tensor, of which ``fingerprints`` takes the bits."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.numel() > 0
        and tensor.element_size() in _BITS
        and not tensor.is_meta
    )
