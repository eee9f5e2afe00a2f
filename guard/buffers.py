"""A skipped batch leaves no trace in the buffers: one forward on bad data ruins BatchNorm's statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ALWAYS_COPIED_ELEMENTS = 1 << 16


class Buffers:
    """The buffers of a model, looked up by name: a module may put a new tensor in a buffer's place."""

    def __init__(self, model: nn.Module) -> None:
        self._slots = [(module._buffers, name) for module in model.modules() for name in module._buffers]

    def read(self) -> list[Tensor | None]:
        """The present buffers, in a fixed order; None where a module holds none."""
        return [buffers[name] for buffers, name in self._slots]

    @torch.no_grad()
    def write(self, values: list[Tensor | None], only: list[int] | None = None) -> None:
        """Puts copies of ``values`` (all, or those at the places ``only``) back: in place where they fit."""
        live: list[Tensor] = []
        kept: list[Tensor] = []
        for i in range(len(values)) if only is None else only:
            buffers, name = self._slots[i]
            now, value = buffers[name], values[i]
            if value is None or not _fits(now, value):
                buffers[name] = None if value is None else value.clone()
            elif now is not None and not _overlaps(now):
                live.append(now)
                kept.append(value)
        if live:
            torch._foreach_copy_(live, kept)


class BufferShield:
    """Keeps the buffers as the last accepted step left them and puts them back on a skip.

    A large buffer that was not written to is not copied: a causal mask costs nothing. Small ones always
    are, because BatchNorm's kernels write running statistics without moving their version counter.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = Buffers(model)
        self._copies = [None if b is None else b.detach().clone() for b in self._buffers.read()]
        self._marks = [_mark(buffer) for buffer in self._buffers.read()]

    @torch.no_grad()
    def accept(self) -> None:
        """What the buffers hold now is good."""
        live: list[Tensor] = []
        kept: list[Tensor] = []
        now = self._buffers.read()
        for i in self._written(now):
            buffer, copy = now[i], self._copies[i]
            if buffer is None or copy is None or not _fits(copy, buffer):
                self._copies[i] = None if buffer is None else buffer.detach().clone()
            else:
                live.append(buffer)
                kept.append(copy)
        if live:
            torch._foreach_copy_(kept, live)
        self._marks = [_mark(buffer) for buffer in now]

    def revert(self) -> None:
        """Back to what was last accepted."""
        self._buffers.write(self._copies, self._written(self._buffers.read()))
        self._marks = [_mark(buffer) for buffer in self._buffers.read()]

    def _written(self, now: list[Tensor | None]) -> list[int]:
        """Where a buffer may have changed since the last call of ``accept`` or ``revert``."""
        return [i for i, buffer in enumerate(now) if _is_small(buffer) or _mark(buffer) != self._marks[i]]


def _mark(buffer: Tensor | None) -> tuple[int, int] | None:
    return None if buffer is None else (id(buffer), buffer._version)


def _is_small(buffer: Tensor | None) -> bool:
    return buffer is None or buffer.numel() <= ALWAYS_COPIED_ELEMENTS


def _fits(now: Tensor | None, value: Tensor) -> bool:
    return (
        now is not None
        and now.shape == value.shape
        and now.dtype == value.dtype
        and now.device == value.device
    )


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements share memory, as in an expanded tensor: nothing can write to it in place."""
    return any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
