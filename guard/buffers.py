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
        self._known: list[Tensor | None] = []
        self._copies: list[Tensor | None] = []
        self._small: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._large: dict[int, int] = {}
        self._copy_anew(self._buffers.read())

    @torch.no_grad()
    def accept(self) -> None:
        """What the buffers hold now is good."""
        now = self._buffers.read()
        if any(buffer is not known for buffer, known in zip(now, self._known, strict=True)):
            self._copy_anew(now)
            return
        live, kept = self._small
        if live:
            torch._foreach_copy_(kept, live)
        for i in self._written_large(now):
            buffer, copy = now[i], self._copies[i]
            if buffer is not None and copy is not None:
                copy.copy_(buffer)
                self._large[i] = buffer._version

    def revert(self) -> None:
        """Back to what was last accepted."""
        now = self._buffers.read()
        changed = [i for i, buffer in enumerate(now) if buffer is not self._known[i] or i not in self._large]
        self._buffers.write(self._copies, [*changed, *self._written_large(now)])
        self._copy_anew(self._buffers.read())

    def _written_large(self, now: list[Tensor | None]) -> list[int]:
        """Where a large buffer was written to since the last call of ``accept`` or ``revert``."""
        marks = [(i, version, now[i]) for i, version in self._large.items()]
        return [i for i, version, buffer in marks if buffer is not None and buffer._version != version]

    def _copy_anew(self, now: list[Tensor | None]) -> None:
        """Copies all buffers, and notes which are small; after this ``accept`` allocates nothing."""
        self._known = list(now)
        self._copies = [None if buffer is None else buffer.detach().clone() for buffer in now]
        pairs = [(b, c) for b, c in zip(now, self._copies, strict=True) if b is not None and c is not None]
        small = [(b, c) for b, c in pairs if b.numel() <= ALWAYS_COPIED_ELEMENTS]
        self._small = ([b for b, _ in small], [c for _, c in small])
        self._large = {
            i: b._version for i, b in enumerate(now) if b is not None and b.numel() > ALWAYS_COPIED_ELEMENTS
        }


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
