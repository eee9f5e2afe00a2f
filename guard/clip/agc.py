"""Adaptive gradient clipping: each unit's gradient is held to a share of the norm of its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from guard.clip.base import Clipper, ratio_of
from guard.clip.fixed import to_floats
from guard.errors import UnsupportedGradient
from guard.observe.norms import square_norms
from guard.observe.shards import Shards
from guard.types import Observation


class AgcClipper(Clipper):
    """``agc``: where a unit's ``|G| / max(|W|, eps)`` exceeds ``clip_factor``, its G is scaled to that.

    Source: Brock, De, Smith, Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization"
    (2021), section 4.1, equation 3. A unit is what one index of a weight's first dimension holds, as torch
    lays weights out (a row of a linear layer, an output channel of a convolution, a row of an embedding); a
    vector or a scalar, such as a bias or a gain, is one unit as a whole. The paper does not clip the last
    linear layer; here all are clipped. A tensor whose gradient is below ``clip_factor * eps`` is not read.
    """

    def _take(self, parameters: Sequence[Tensor], shards: Shards | None = None) -> None:
        super()._take(parameters, shards)
        if self._shards is not None:
            raise UnsupportedGradient(
                "clip kind agc measures whole units, and the model is sharded, which may split a unit over "
                "ranks: set clip kind to adagc (each tensor), norm or auto"
            )

    def _clip_elements_(self, seen: Observation) -> float | None:
        if not math.isfinite(seen.grad_norm):
            return None
        least = self.config.clip_factor * self.config.eps
        near = [i for i, n in enumerate(seen.layer_norms.tolist()) if n > 0.99 * least]
        factors = [self._unit_factors(i) for i in near]
        lowest = to_floats([f.min() for f in factors])
        changed = [(i, f) for i, f, low in zip(near, factors, lowest.tolist(), strict=True) if low < 1.0]
        if not changed:
            return None
        for i, factor in changed:
            self._gradient(i).mul_(factor)
        norms = seen.layer_norms.copy()
        norms[[i for i, _ in changed]] = np.sqrt(square_norms([self._gradient(i) for i, _ in changed]))
        return ratio_of(norms, seen)

    def _unit_factors(self, index: int) -> Tensor:
        """What each unit of a gradient is multiplied with, in a shape that broadcasts; 1 for most."""
        gradient = self._parameters[index].grad
        if gradient is not None and gradient.is_sparse:
            raise UnsupportedGradient(
                f"clip kind agc measures whole units, and parameter {index} has a sparse gradient: "
                "set sparse=False, or clip kind to adagc, norm or auto"
            )
        limits = unit_norms(self._parameters[index]).clamp_(min=self.config.eps).mul_(self.config.clip_factor)
        norms = unit_norms(self._gradient(index))
        return torch.where(norms > limits, limits / norms, 1.0)


def unit_norms(tensor: Tensor) -> Tensor:
    """The L2 norm of each unit, with the dimensions kept: (n, 1, ...) of (n, ...), one value of a vector."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    inner = list(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    return torch.linalg.vector_norm(tensor, dim=inner, keepdim=True, dtype=wide)
