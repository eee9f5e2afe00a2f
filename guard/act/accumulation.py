"""Accumulation windows: one micro-batch that is not finite is left out, and the others are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from guard.act.buffers import BufferShield
from guard.observe.local_norms import find_ddp


class GradAccumulation:
    """The micro-batches between two optimizer steps.

    A micro-batch is looked at before its backward where it is known to be one of several: by DDP's
    ``no_sync``, or because the window before had several. The host then reads its loss. One whose loss is not
    finite goes through backward all the same, because other ranks wait for its all-reduce, but adds zeros.

    Args:
        model: the module or its DDP wrapper.
        parameters: those whose gradients are accumulated.
        active: whether anything may be left out at all.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor], *, active: bool) -> None:
        self._model = model
        self._ddp = find_ddp(model)
        self._parameters = parameters
        self._active = active
        self._before = 1
        self._now = 0
        self._shield: BufferShield | None = None
        self._absent = False

    def again(self, *, absent: bool = False) -> None:
        """The window begins anew with the same micro-batches; ``absent``: all of them are left out here."""
        self._now, self._absent = 0, absent

    def drops(self, loss: Tensor) -> bool:
        """Whether the micro-batch of ``loss`` is to be left out: its backward is then ``leaving_out``."""
        self._now += 1
        if self._absent:
            return True
        if not self._active or not self._several():
            return False
        if self._shield is None:
            self._shield = BufferShield(self._model)
            if not bool(torch.isfinite(loss)):
                return False  # the first one of all: the buffers of before it are not known
        if bool(torch.isfinite(loss)):
            self._shield.accept()
            return False
        return True

    @contextmanager
    def leaving_out(self) -> Iterator[None]:
        """Around a backward whose gradients are to add nothing; what forward did to the buffers goes too."""
        handles = [p.register_hook(torch.zeros_like) for p in self._parameters]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if self._shield is not None:
                self._shield.revert()  # not before: backward still needs what forward left

    def close(self) -> None:
        """The optimizer step has come, or was given up: the next micro-batch begins a new window."""
        self._before, self._now, self._absent = max(1, self._now), 0, False
        if self._shield is not None:
            self._shield.accept()

    def _several(self) -> bool:
        no_sync = self._ddp is not None and not self._ddp.require_backward_grad_sync
        return no_sync or self._now > 1 or self._before > 1


def correction(micro_batches: int, dropped: int) -> float:
    """What the accumulated gradient is multiplied with when some micro-batches were left out of its mean."""
    return micro_batches / (micro_batches - dropped) if dropped < micro_batches else 1.0
