"""One pass over the gradients: the global norm, every parameter's norm and the finite check.

The finite check is free: NaN and infinity propagate into the norms. Norms are taken in float32 and
combined in float64; tensors above 2^20 elements are split first, because torch's float32 norm drifts on
large tensors (3e-3 relative at 5e7 elements).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from guard.errors import UnsupportedGradient

SPLIT_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Observation:
    """What one pass over the gradients says.

    ``layer_norms`` has one float64 L2 norm for each parameter that takes gradients, in the model's order;
    a parameter without a gradient in this step has 0.
    """

    grad_norm: float
    layer_norms: NDArray[np.float64]


class Observer:
    """Measures the gradients of a fixed list of named parameters."""

    def __init__(self, named: dict[str, Tensor]) -> None:
        self.names = [name for name, parameter in named.items() if parameter.requires_grad]
        self.parameters = [parameter for parameter in named.values() if parameter.requires_grad]
        for name, parameter in named.items():
            if parameter.requires_grad and parameter.is_complex():
                raise UnsupportedGradient(f"{name} is complex: freeze it or store real and imaginary parts")

    def gradients(self) -> list[Tensor]:
        """The gradients that exist in this step."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def drop_gradients(self) -> None:
        """Forgets the gradients: a bad one must not be added to by a later backward."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def observe(self) -> Observation:
        """Norms of the present gradients; non-finite ones give a non-finite norm, never an error."""
        pieces, owners = self._pieces()
        squares = np.zeros(len(self.parameters), dtype=np.float64)
        if pieces:
            norms = torch.stack(_norms(pieces)).cpu().numpy().astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                np.add.at(squares, owners, norms * norms)
        with np.errstate(invalid="ignore", over="ignore"):
            return Observation(float(np.sqrt(squares.sum())), np.sqrt(squares))

    def _pieces(self) -> tuple[list[Tensor], list[int]]:
        pieces: list[Tensor] = []
        owners: list[int] = []
        for i, parameter in enumerate(self.parameters):
            gradient = parameter.grad
            if gradient is None or gradient.numel() == 0:
                continue
            if gradient.is_sparse:
                raise UnsupportedGradient(f"{self.names[i]} has a sparse gradient: set sparse=False")
            chunks = _split(gradient)
            pieces.extend(chunks)
            owners.extend([i] * len(chunks))
        return pieces, owners


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside DDP and torch.compile."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def parameter_names(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by the name they have in the user's model, whatever it is wrapped in."""
    named = unwrap(model).named_parameters()
    return {name.replace("_orig_mod.", ""): parameter for name, parameter in named}


def norm(gradient: Tensor) -> Tensor:
    """The L2 norm, taken in float32 also of half precision; in float64 only of float64."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vector_norm(gradient, dtype=wide)


def _split(gradient: Tensor) -> Sequence[Tensor]:
    if gradient.numel() <= SPLIT_ELEMENTS:
        return (gradient,)
    return gradient.reshape(-1).split(SPLIT_ELEMENTS)


def _norms(pieces: list[Tensor]) -> tuple[Tensor, ...]:
    if all(piece.dtype == torch.float32 for piece in pieces):
        return torch._foreach_norm(pieces)
    return tuple(norm(piece) for piece in pieces)
