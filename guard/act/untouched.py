"""What runs inside leaves gradients, buffers, weights or random numbers as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from guard.act import rng
from guard.act.buffers import Buffers
from guard.act.stores import TensorStore
from guard.observe.local_norms import find_ddp


@contextmanager
def untouched(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """What runs inside leaves no trace, and exchanges nothing with other ranks.

    The parameters have no gradients meanwhile, and what autocast has cast of them is cast again. Attributes
    of the modules are restored, such as the hidden state from which the next batch continues, but not what
    was changed in place in them. Memory: a copy of the buffers.
    """
    gradients, generators = [p.grad for p in parameters], rng.capture(rng.devices_of(model))
    buffers = Buffers(model)
    before = buffers.read()
    kept = [None if buffer is None else buffer.detach().clone() for buffer in before]
    for parameter in parameters:
        parameter.grad = None
    try:
        with _alone(model), fixed_statistics(model, SyncBatchNorm), _kept_attributes(model), _cast_again():
            yield
    finally:
        _restore(buffers, before, kept)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        rng.restore(generators)


@contextmanager
def kept_weights(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Weights and buffers are as before once what runs inside has ended, unless it raises.

    Memory: a copy of both.
    """
    buffers, weights = Buffers(model), TensorStore()
    before = buffers.read()
    kept = [None if buffer is None else buffer.detach().clone() for buffer in before]
    weights.save(parameters)
    yield
    weights.restore(parameters)
    _restore(buffers, before, kept)


@contextmanager
def fixed_statistics(model: nn.Module, kind: type[nn.Module] = _BatchNorm) -> Iterator[None]:
    """BatchNorm uses its running statistics: those of one sample are none."""
    layers = [m for m in model.modules() if isinstance(m, kind) and m.training and m.running_mean is not None]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


@contextmanager
def _kept_attributes(model: nn.Module) -> Iterator[None]:
    """Modules have the attributes of before."""
    kept = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for now, before in kept:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)


@contextmanager
def _cast_again() -> Iterator[None]:
    """Autocast keeps no weights from before or from inside, which may be others, or have no graph."""
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """DDP's forward is that of the module in it: no buffers are sent, no all-reduce is prepared."""
    ddp: Any = find_ddp(model)
    if ddp is None:
        yield
        return
    with ddp.no_sync():
        ddp.forward = ddp.module.__call__
        try:
            yield
        finally:
            del ddp.forward


@torch.no_grad()
def _restore(buffers: Buffers, before: list[Tensor | None], kept: list[Tensor | None]) -> None:
    """Writes only what has changed: a buffer's version shows whether it was written to."""
    for (slots, name), now, old in zip(buffers.slots, buffers.read(), before, strict=True):
        if now is not old:
            slots[name] = old
    changed = [
        i
        for i, (old, copy) in enumerate(zip(before, kept, strict=True))
        if old is not None and copy is not None and not torch.equal(old, copy)
    ]
    if changed:
        buffers.write(kept, changed)
