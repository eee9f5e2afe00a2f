"""Layer-sequential unit-variance weights, after Mishkin and Matas, "All you need is a good init" (2016).

The paper repeats the forward pass until the variance is near 1. Here the biases are zero, so a layer's output
is proportional to its weights: dividing both by the deviation as the batch comes by is exact, and one forward
pass does for all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jobs.init.matrices import Weights

_LEAST_STD = 1e-8


def unit_variance_(model: nn.Module, layers: Sequence[Weights], forward: Callable[[], None]) -> None:
    """Scales the weights of the layers so that each gives outputs of variance 1 on a batch.

    Args:
        model: with orthogonal weights and zero biases; its buffers come out as they went in.
        layers: those to scale. Layers that are used without being called keep their orthogonal weights.
        forward: runs the batch through ``model``.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    hooks = [
        layer.module.register_forward_hook(_once(layer.matrices[0]))
        for layer in layers
        if len(layer.matrices) == 1 and not layer.is_embedding
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # what dropout draws must not differ between workers
            forward()
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _once(weight: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
    """Scales the layer at its first call: a layer that is used twice keeps the scale of the first time."""
    done = False

    def scale(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        nonlocal done
        if done:
            return None
        done = True
        std = float(output.float().std(correction=0))
        if not _LEAST_STD < std < float("inf"):
            return None  # nothing comes through, or nothing finite: scaling cannot help
        weight.div_(std)
        return output / std

    return scale
