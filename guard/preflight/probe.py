"""Measures every layer in one forward and one backward pass, with hooks that are removed afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guard.observe.norms import widest
from guard.preflight.report import LayerReport

_RECTIFIERS = ("ReLU", "ReLU6", "LeakyReLU", "Hardswish", "Hardsigmoid", "Threshold")
_RANDOM = ("Dropout", "Dropout2d", "AlphaDropout", "StochasticDepth")


@dataclass(slots=True, eq=False)
class Seen:
    """What the hooks keep of one layer: figures and one flag per unit, never an activation."""

    name: str
    module: nn.Module
    mean: float
    std: float
    rms: float
    abs_max: float
    input_rms: float
    silent: Tensor
    """Per unit: the output is not above zero for any sample."""
    zero: Tensor
    """Per unit: the output is zero for every sample."""
    gradient_rms: float = math.nan
    gradient_zero: Tensor | None = None
    underflow: float = 0.0


@contextmanager
def probed(model: nn.Module, *, smallest: float) -> Iterator[list[Seen]]:
    """Records the first call of each layer while the block runs.

    Args:
        model: the bare module.
        smallest: magnitude below which the chosen precision rounds to zero.
    """
    seen: list[Seen] = []
    called: set[int] = set()

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = _tensor_of(output)
        if id(module) in called or tensor is None:
            return
        called.add(id(module))
        entry = _measure(name, module, _tensor_of(inputs), tensor.detach())
        seen.append(entry)
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: _backward(entry, gradient, smallest))

    hooks = [
        module.register_forward_hook(lambda m, inputs, output, name=name: record(name, m, inputs, output))
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) or not list(module.children())
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _tensor_of(value: Any) -> Tensor | None:
    if isinstance(value, tuple | list) and value:
        value = value[0]
    good = isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0
    return value if good else None


def _measure(name: str, module: nn.Module, given: Tensor | None, output: Tensor) -> Seen:
    values = output.float()
    deviation, mean = torch.std_mean(values, correction=0)
    units = _by_unit(values)
    return Seen(
        name=name,
        module=module,
        mean=float(mean),
        std=float(deviation),
        rms=math.hypot(float(mean), float(deviation)),
        abs_max=float(values.abs().max()),
        input_rms=math.nan if given is None else _rms(given.detach()),
        silent=units.amax(1) <= 0,
        zero=(units == 0).all(1),
    )


def _backward(entry: Seen, gradient: Tensor, smallest: float) -> None:
    values = gradient.detach().float()
    entry.gradient_rms = _rms(values)
    entry.gradient_zero = (_by_unit(values) == 0).all(1)
    magnitude = values.abs()
    entry.underflow = float(((magnitude > 0) & (magnitude < smallest)).float().mean())


def _by_unit(values: Tensor) -> Tensor:
    """[units, everything else]: channels of an image batch [N, C, H, W], else features of [..., F]."""
    if values.ndim < 2:
        return values.reshape(1, -1)
    axis = 1 if values.ndim >= 4 else values.ndim - 1
    return values.movedim(axis, 0).flatten(1)


def _rms(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=widest(values.device))) / math.sqrt(values.numel())


def _dead(entry: Seen) -> float:
    """A rectifier's unit is dead when its output is zero, any other when no gradient comes back either."""
    kind = type(entry.module).__name__
    if kind in _RANDOM:
        return 0.0
    if kind in _RECTIFIERS:
        return float(entry.zero.float().mean())
    if entry.gradient_zero is None or entry.gradient_zero.shape != entry.silent.shape:
        return 0.0
    return float((entry.silent & entry.gradient_zero).float().mean())


def layer_report(entry: Seen) -> LayerReport:
    """The figures of a layer, after backward; gradients of its own parameters included."""
    own = [p for p in entry.module.parameters() if p.requires_grad]
    gradients = [p.grad for p in own if p.grad is not None]
    grad_norm, weight_norm = norm_of(gradients), norm_of([p.detach() for p in own])
    figures = (entry.rms, grad_norm, weight_norm)
    gradient_fine = entry.gradient_zero is None or math.isfinite(entry.gradient_rms)
    return LayerReport(
        name=entry.name,
        kind=type(entry.module).__name__,
        mean=entry.mean,
        std=entry.std,
        rms=entry.rms,
        abs_max=entry.abs_max,
        growth=entry.rms / entry.input_rms if entry.input_rms > 0 else math.nan,
        dead_share=_dead(entry),
        gradient_rms=entry.gradient_rms,
        weight_norm=weight_norm,
        grad_norm=grad_norm,
        underflow_share=entry.underflow,
        finite=gradient_fine and all(map(math.isfinite, figures)),
        matrix=any(p.ndim >= 2 for p in own),
    )


def norm_of(tensors: list[Tensor]) -> float:
    """The L2 norm of all of them together."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(t, dtype=widest(t.device))) ** 2 for t in tensors))
