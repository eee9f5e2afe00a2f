"""From the figures of the layers to a verdict, the first bad layer, and the fix.

A layer's relative gradient is its gradient norm over its weight norm. How the largest of the first third of
the layers compares with that of the last third shows what happens to a gradient on its way back; neither
depth nor the scale of the loss matters, and residual branches that start at zero do not hide the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from guard.preflight.report import Kind, LayerReport, Precision, PreflightReport

RATIO_LIMIT = 1e4
"""Relative gradient of the first layers over that of the last ones: more, or less than 1 / this, is bad.

Twenty torchvision models are between 0.004 and 61."""
SIGNAL_LIMIT = 1e4
"""Growth of the signal from the first layer on that is too much; torchvision's models stay below 20."""
DEAD_SHARE = 0.9
"""Share of a layer's units without output from which on nearly no signal passes."""
_DEEP = 6
"""With fewer layers a third is a single one, whose gradient shows little about depth."""


class _Finding(NamedTuple):
    """The first fields of a ``PreflightReport``."""

    verdict: Kind
    layer: str | None
    reason: str
    suggestion: str


def assess(
    layers: Sequence[LayerReport], *, loss: float, grad_norm: float, precision: Precision, largest: float
) -> PreflightReport:
    """The verdict on one batch.

    Args:
        layers: in the order of the forward pass.
        loss: of the batch.
        grad_norm: global.
        precision: of the training.
        largest: number of that precision.
    """
    weighted = [layer for layer in layers if layer.matrix]
    finding = (
        _signal_explodes(layers, weighted)
        or _nan(layers, loss, grad_norm)
        or _gradient_explodes(layers, weighted)
        or _overflow(layers, precision, largest)
        or _dead(layers, weighted, grad_norm)
        or _vanishing(layers, weighted)
        or _Finding("fine", None, "signal and gradient get through", "")
    )
    return PreflightReport(
        *finding,
        loss=loss,
        grad_norm=grad_norm,
        growth_forward=_per_layer([layer.rms for layer in weighted]),
        growth_backward=_per_layer([layer.gradient_rms for layer in reversed(weighted)]),
        precision=precision,
        layers=tuple(layers),
    )


def _nan(layers: Sequence[LayerReport], loss: float, grad_norm: float) -> _Finding | None:
    forward = next((layer for layer in layers if not math.isfinite(layer.rms)), None)
    if forward is not None:
        return _nan_at(forward, "its output")
    if not math.isfinite(loss):
        return _Finding("nan", None, f"the loss is {loss}", "check the loss and its targets")
    backward = next((layer for layer in reversed(layers) if not layer.finite), None)
    if backward is not None:
        return _nan_at(backward, "its gradient")
    if not math.isfinite(grad_norm):
        return _Finding("nan", None, f"the gradient norm is {grad_norm}", "check the loss and the weights")
    return None


def _nan_at(layer: LayerReport, what: str) -> _Finding:
    hint = "check the input data and the weights and operations of this layer (division, log, sqrt)"
    return _Finding("nan", layer.name, f"{what} is not finite", hint)


def _signal_explodes(layers: Sequence[LayerReport], weighted: Sequence[LayerReport]) -> _Finding | None:
    sizes = [layer.rms for layer in weighted]
    first = next((size for size in sizes if size > 0), math.nan)
    bad = next((layer for layer in weighted if layer.rms > SIGNAL_LIMIT * first), None)
    if bad is None:
        return None
    reason = f"the signal is {bad.rms / first:.3g} times that of the first layer"
    return _Finding("exploding", bad.name, reason, _smaller_weights(layers))


def _gradient_explodes(layers: Sequence[LayerReport], weighted: Sequence[LayerReport]) -> _Finding | None:
    ratio = _ratio(weighted)
    if ratio <= RATIO_LIMIT:
        return None
    threshold = RATIO_LIMIT * _late(weighted)
    bad = next(layer for layer in reversed(weighted) if layer.relative_gradient > threshold)
    reason = f"the gradient grows {ratio:.3g}-fold on its way back to the first layers"
    return _Finding("exploding", bad.name, reason, _smaller_weights(layers))


def _overflow(layers: Sequence[LayerReport], precision: Precision, largest: float) -> _Finding | None:
    bad = next((layer for layer in layers if layer.abs_max > largest), None)
    if bad is None:
        return None
    reason = f"its output reaches {bad.abs_max:.3g}, and {precision} ends at {largest:.3g}"
    return _Finding("overflow", bad.name, reason, "set train.precision: bf16, or scale the inputs down")


def _dead(
    layers: Sequence[LayerReport], weighted: Sequence[LayerReport], grad_norm: float
) -> _Finding | None:
    bad = next((layer for layer in layers if layer.dead_share >= DEAD_SHARE), None)
    if bad is not None:
        reason = f"{bad.dead_share:.0%} of its units have no output for any sample"
        hint = "set model.init: kaiming, whose biases start at zero, or a smaller optimizer.lr"
        return _Finding("dead", bad.name, reason, hint)
    if grad_norm == 0 and weighted:
        return _Finding("dead", weighted[-1].name, "no parameter gets a gradient", "check the loss")
    return None


def _vanishing(layers: Sequence[LayerReport], weighted: Sequence[LayerReport]) -> _Finding | None:
    ratio = _ratio(weighted)
    if not 0 <= ratio < 1 / RATIO_LIMIT:
        return None
    threshold = _late(weighted) / RATIO_LIMIT
    bad = next(la for la in reversed(weighted) if la.relative_gradient < threshold)
    reason = f"the gradient of the first layers is {ratio:.3g} times that of the last ones"
    if _normalized(layers):
        return _Finding("vanishing", bad.name, reason, "set model.init: orthogonal, or use fewer layers")
    hint = "set model.init: lsuv (or kaiming), use ReLU-like activations, or add normalization"
    return _Finding("vanishing", bad.name, reason, hint)


def _smaller_weights(layers: Sequence[LayerReport]) -> str:
    if _normalized(layers):
        return "set model.init: {residual: zero}, a smaller optimizer.lr, or schedule.warmup_steps"
    return "set model.init: lsuv (or kaiming), or add normalization; a smaller optimizer.lr only delays it"


def _normalized(layers: Sequence[LayerReport]) -> bool:
    return any("Norm" in layer.kind for layer in layers)


def _ratio(weighted: Sequence[LayerReport]) -> float:
    """Relative gradient of the first third over that of the last; 1 for a network that is too shallow."""
    late = _late(weighted)
    if len(weighted) < _DEEP or late == 0:
        return 1.0
    return max(layer.relative_gradient for layer in weighted[: len(weighted) // 3]) / late


def _late(weighted: Sequence[LayerReport]) -> float:
    third = max(1, len(weighted) // 3)
    return max((layer.relative_gradient for layer in weighted[-third:]), default=0.0)


def _per_layer(sizes: Sequence[float]) -> float:
    """The constant factor that would lead from the first size to the last."""
    known = [size for size in sizes if math.isfinite(size) and size > 0]
    if len(known) < 2:
        return 1.0
    return float((known[-1] / known[0]) ** (1 / (len(known) - 1)))
