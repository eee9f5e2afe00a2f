"""One real batch, forward and backward, on a model that is left exactly as it was."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from guard.observe.watched import unwrap
from guard.preflight.findings import assess
from guard.preflight.probe import layer_report, norm_of, probed
from guard.preflight.report import Precision, PreflightReport

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def run_preflight(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], *, precision: Precision = "fp32"
) -> PreflightReport:
    """Runs one batch through the model and judges how signal and gradient get through.

    Weights, buffers, gradients, modes and random number generators are restored afterwards. Computed in the
    model's own precision; the figures are compared with the range of ``precision``. No collective is called.

    Args:
        model: the module, or its DDP wrapper.
        loss: computes the scalar loss of the batch from the bare module.
        precision: that the training will use.
    """
    bare = unwrap(model)
    limits = torch.finfo(_DTYPES[precision])
    smallest = limits.smallest_normal * limits.eps  # the least subnormal number
    with _untouched(bare), torch.enable_grad(), probed(bare, smallest=smallest) as seen:
        value = loss(bare)
        if value.requires_grad and math.isfinite(float(value.detach())):
            value.backward()
        layers = tuple(map(layer_report, seen))
        total = float(value.detach())
        grad_norm = norm_of([p.grad for p in bare.parameters() if p.grad is not None])
    return assess(layers, loss=total, grad_norm=grad_norm, precision=precision, largest=limits.max)


@contextmanager
def generators_kept(devices: Sequence[int] = ()) -> Iterator[None]:
    """Restores the random number generators of Python, NumPy and torch after the block, those of these GPUs
    included: what is drawn in it must not change the training."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Restores buffers, gradients and generators after the block."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters]
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    for parameter in parameters:
        parameter.grad = None
    try:
        with generators_kept(devices):
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
