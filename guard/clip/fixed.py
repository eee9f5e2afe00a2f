"""Fixed limits, as torch has them: of the global norm, of each parameter group's norm, of each element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from guard.clip.base import Clipper, Step, coefficient, ratio_of, scale_
from guard.config import ClipConfig
from guard.observe.norms import square_norms, widest
from guard.observe.shards import Shards
from guard.types import Floats, Observation, Plan

_SURELY = 0.99
"""An L2 norm below this share of a limit has no element above the limit, whatever its rounding error."""


class _PNormClipper(Clipper):
    """What the kinds with a ``norm_type`` share."""

    def _p_norms(self, p: float) -> Floats:
        """The p-norm of each parameter's gradient; 0 where there is none."""
        with_gradient = [i for i, parameter in enumerate(self._parameters) if parameter.grad is not None]
        norms = np.zeros(len(self._parameters))
        norms[with_gradient] = p_norms([self._gradient(i) for i in with_gradient], p)
        return norms if self._shards is None else self._shards.p_norms(norms, p)


class NormClipper(_PNormClipper):
    """``norm``: the p-norm of all gradients together is held to ``max_norm``.

    Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013),
    section 3.2, algorithm 1; the coefficient is that of ``torch.nn.utils.clip_grad_norm_``. The L2 norm is
    the one already measured; any other is read from the gradients when they are clipped. A norm that is not
    finite changes nothing (in torch it turns gradients into zeros or NaN): the guard skips such a step.
    """

    def _plan(self, step: Step) -> Plan:
        return Plan(step.seen, limit=self.config.max_norm if self.config.norm_type == 2 else None)

    def _clip_elements_(self, seen: Observation) -> float | None:
        if self.config.norm_type == 2 or not math.isfinite(seen.grad_norm):
            return None
        total = total_norm(self._p_norms(self.config.norm_type), self.config.norm_type)
        factor = coefficient(total, self.config.max_norm)
        scale_(self._gradients(), factor)
        return None if factor == 1.0 else factor


class GroupClipper(_PNormClipper):
    """``group``: the p-norm of each parameter group of the optimizer is held to ``max_norm``.

    It equals ``clip_grad_norm_`` (see ``NormClipper``) called once for each group. L2 norms are combined from
    those already measured. Gradients of parameters in no group are not clipped.
    """

    def __init__(
        self, config: ClipConfig, parameters: Sequence[Tensor], *, optimizer: Optimizer | None = None
    ) -> None:
        super().__init__(config, parameters)
        self._optimizer = optimizer

    def _plan(self, step: Step) -> Plan:
        measured = self.config.norm_type == 2
        return Plan(step.seen, factors=self._of_groups(step.seen.layer_norms) if measured else None)

    def _clip_elements_(self, seen: Observation) -> float | None:
        return self._scale_each_(seen, self._of_groups(self._p_norms(self.config.norm_type)))

    def _of_groups(self, norms: Floats) -> Floats:
        factors = np.ones(len(norms))
        for members in self._groups():
            total = total_norm(norms[members], self.config.norm_type)
            factors[members] = coefficient(total, self.config.max_norm)
        factors[norms == 0.0] = 1.0
        return factors

    def _groups(self) -> list[list[int]]:
        """Indices of the parameters in each group; looked up each time, since groups can be added."""
        index = {id(p): i for i, p in enumerate(self._parameters)}
        if self._optimizer is None:
            return [list(index.values())]
        groups = [group["params"] for group in self._optimizer.param_groups]
        return [[index[id(p)] for p in group if id(p) in index] for group in groups]


class ValueClipper(Clipper):
    """``value``: each element is held between ``-max_value`` and ``max_value``.

    Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 10.11.1, after Mikolov (2012). It
    equals ``torch.nn.utils.clip_grad_value_``, infinities and NaN included. A tensor whose L2 norm is below
    the limit has no element above it and is not read; the others are read once, and clamped if they exceed.
    """

    def _clip_elements_(self, seen: Observation) -> float | None:
        limit = self.config.max_value or math.inf
        large = np.flatnonzero(~(seen.layer_norms < _SURELY * limit)).tolist()  # the same on every rank
        read = [i for i in large if self._has_gradient(i)]
        highest = peaks([self._gradient(i) for i in read])
        above = [i for i, peak in zip(read, highest, strict=True) if not peak <= self._rounded(i, limit)]
        for i in above:
            self._gradient(i).clamp_(-limit, limit)
        norms = seen.layer_norms.copy()
        if self._shards is not None and large:
            return self._over_shards(self._shards, seen, read, above)
        norms[above] = np.sqrt(square_norms([self._gradient(i) for i in above]))
        return ratio_of(norms, seen) if above else None

    def _over_shards(
        self, shards: Shards, seen: Observation, read: list[int], above: list[int]
    ) -> float | None:
        """The ratio where each rank clamped its shards; all ranks come here, whether they clamped or not."""
        clamped, squares = np.zeros(len(seen.layer_norms)), np.zeros(len(seen.layer_norms))
        clamped[above] = 1.0
        squares[read] = square_norms([self._gradient(i) for i in read])
        clamped, squares = shards.sum(clamped), shards.sum(squares)
        if not clamped.any():
            return None
        return ratio_of(np.where(clamped > 0, np.sqrt(squares), seen.layer_norms), seen)

    def _rounded(self, index: int, limit: float) -> float:
        """The limit as the gradient's dtype has it, which is what clamping leaves behind."""
        return float(torch.tensor(limit, dtype=self._gradient(index).dtype))


def peaks(gradients: Sequence[Tensor]) -> Floats:
    """The largest absolute value of each gradient, none of them empty; NaN where there is a NaN."""
    lowest, highest = zip(*(torch.aminmax(g) for g in gradients), strict=True) if gradients else ((), ())
    return np.maximum(to_floats(highest), -to_floats(lowest))


def p_norms(gradients: Sequence[Tensor], p: float) -> Floats:
    """The p-norm of each gradient, p from 1 to infinity; scaled by its peak, so that no power overflows."""
    norms = np.zeros(len(gradients))
    full = [i for i, g in enumerate(gradients) if g.numel()]
    highest = peaks([gradients[i] for i in full])
    if p != math.inf:
        scales = np.where(np.isfinite(highest) & (highest > 0), highest, 1.0)
        sums = to_floats([_power_sum(gradients[i], s, p) for i, s in zip(full, scales.tolist(), strict=True)])
        highest = np.where(np.isfinite(highest), scales * sums ** (1 / p), highest)
    norms[full] = highest
    return norms


def total_norm(norms: Floats, p: float) -> float:
    """The p-norm of everything from the p-norms of its parts."""
    highest = float(norms.max(initial=0.0))
    if not 0.0 < highest < math.inf:  # NaN too
        return highest
    return highest * float(np.linalg.norm(norms / highest, ord=p))


def to_floats(scalars: Sequence[Tensor]) -> Floats:
    """0-dim tensors, of any dtypes and devices, brought to the host together."""
    if not scalars:
        return np.zeros(0)
    device = scalars[0].device
    return torch.stack([s.to(device, widest(device)) for s in scalars]).cpu().numpy()


def _power_sum(gradient: Tensor, scale: float, p: float) -> Tensor:
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return gradient.to(wide, copy=True).abs_().div_(scale).pow_(p).sum()
