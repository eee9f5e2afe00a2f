"""Squared L2 norms of many gradients at once, in one pass over them.

On the CPU a dot product of numpy's reads a large contiguous tensor faster than torch's norm kernel does, and
than torch's own, whose threads wait for each other where the cores are busy (at a load of 20 on two cores
ResNet-50 took 21 ms in place of 556); many small tensors are cheapest in one ``_foreach_norm``, which is
also the way on a GPU. Float32 sums drift on large tensors (3e-3 relative at 5e7 elements), so tensors are
split at 2^20 elements and combined in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.types import Floats

Places = NDArray[np.intp]
SPLIT_ELEMENTS = 1 << 20
"""A float32 sum of that many squares is off by about 1e-4; see above."""
SMALL_ELEMENTS = 1 << 15
"""Up to this a call of its own costs more than the slower kernel."""


def square_norms(gradients: Sequence[Tensor]) -> Floats:
    """The squared L2 norm of each gradient, float64 [len(gradients)]; not finite where the gradient is not.

    A gradient with an element above about 1e19 counts as infinite: its square leaves float32.
    """
    pieces, owners = square_pieces(gradients)
    return sum_pieces(pieces.cpu().numpy(), owners, len(gradients))


def ordered_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The squared L2 norm of each tensor, in order, where they are; the host waits for no device."""
    squares, owners = square_pieces(tensors)
    if owners == list(range(len(tensors))):
        return squares
    index = torch.tensor(owners).to(squares.device, non_blocking=True)
    return torch.zeros(len(tensors), dtype=squares.dtype, device=squares.device).index_add_(0, index, squares)


def square_pieces(gradients: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """The squared norms of all pieces of the gradients, where they are, not read by the host.

    Returns:
        Squares, float64 [pieces], and for each piece the index of its gradient.
    """
    if not gradients:
        return torch.zeros(0, dtype=torch.float64), []
    return _by_dot_products(gradients) or _by_norms(gradients)


def small_squares(gradients: list[Tensor]) -> Tensor | None:
    """As ``square_pieces``, one piece each, where all are small float32 tensors on the CPU; else None."""
    for gradient in gradients:
        if gradient.dtype is not torch.float32 or not gradient.is_cpu or gradient.numel() > SMALL_ELEMENTS:
            return None
        if gradient.is_sparse or gradient.requires_grad:
            return None
    norms = torch.stack(torch._foreach_norm(gradients)).numpy()
    return torch.from_numpy(np.square(norms, dtype=np.float64))


def sum_pieces(pieces: Floats, owners: Sequence[int] | Places, gradients: int) -> Floats:
    """The squares of ``square_pieces``, summed for each gradient."""
    if not len(owners):
        return np.zeros(gradients)
    return np.bincount(owners, weights=pieces, minlength=gradients).astype(np.float64, copy=False)


def to_host(*tensors: Tensor) -> list[Floats]:
    """Copies of them, flat, where the host reads them; from the device of the first in a single read."""
    device, dtype = tensors[0].device, tensors[0].dtype
    if device.type == "cpu":
        return [tensor.numpy().flatten() for tensor in tensors]
    read = torch.cat([tensor.to(device, dtype).flatten() for tensor in tensors]).cpu().numpy()
    return np.split(read, np.cumsum([tensor.numel() for tensor in tensors])[:-1])


def widest(device: torch.device) -> torch.dtype:
    """float64, and float32 where the device (Apple's MPS) has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def norm(gradient: Tensor) -> Tensor:
    """The L2 norm, taken in float32 also of half precision; in float64 only of float64."""
    if gradient.dtype is torch.float32:
        return torch.linalg.vector_norm(gradient)
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vector_norm(gradient, dtype=wide)


def _by_dot_products(gradients: Sequence[Tensor]) -> tuple[Tensor, list[int]] | None:
    """None where a gradient cannot be viewed as a float32 vector on the CPU."""
    if not all(gradient.dtype is torch.float32 and gradient.is_cpu for gradient in gradients):
        return None
    large = [i for i, gradient in enumerate(gradients) if gradient.numel() > SMALL_ELEMENTS]
    if not all(gradients[i].is_contiguous() for i in large):
        return None
    apart = set(large)
    owners = [i for i in range(len(gradients)) if i not in apart]
    small = len(owners)
    products: list[np.float32] = []
    for i in large:
        vector = np.from_dlpack(gradients[i].detach().view(-1))
        pieces = [vector[start : start + SPLIT_ELEMENTS] for start in range(0, vector.size, SPLIT_ELEMENTS)]
        products += [np.dot(piece, piece) for piece in pieces]
        owners += [i] * len(pieces)
    squares = torch.empty(len(owners), dtype=torch.float64)
    if small:
        squares[:small] = torch.stack(torch._foreach_norm([gradients[i] for i in owners[:small]]))
        squares[:small].square_()
    squares[small:] = torch.from_numpy(np.array(products, dtype=np.float64))
    return squares, owners


def _by_norms(gradients: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    owners: list[int] = []
    pieces: list[Tensor] = []
    for i, gradient in enumerate(gradients):
        whole = gradient.numel() <= SPLIT_ELEMENTS
        for piece in (gradient,) if whole else gradient.reshape(-1).split(SPLIT_ELEMENTS):
            owners.append(i)
            pieces.append(piece)
    norms = _wide_norms(pieces)
    if len({piece.device for piece in pieces}) > 1:  # a model on several devices
        norms = [value.to(norms[0].device) for value in norms]
    values = torch.stack(norms)
    values = values.to(widest(values.device))
    return values * values, owners


def _wide_norms(pieces: list[Tensor]) -> list[Tensor] | tuple[Tensor, ...]:
    dtypes = {piece.dtype for piece in pieces}
    if dtypes == {torch.float32}:
        return torch._foreach_norm(pieces)
    if torch.float64 in dtypes:
        return [norm(piece).double() for piece in pieces]
    return torch._foreach_norm(pieces, 2, torch.float32)  # of half precision: taken in float32
