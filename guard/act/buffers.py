"""A skipped batch leaves no trace in the buffers: one forward on bad data ruins BatchNorm's statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from guard.act.pack import Pack

ALWAYS_COPIED_ELEMENTS = 1 << 16
"""BatchNorm's statistics are far smaller, masks and tables that must not be copied each step far larger."""


class Buffers:
    """The buffers of a model, looked up by name: a module may put a new tensor in a buffer's place."""

    def __init__(self, model: nn.Module) -> None:
        self._slots = [(module._buffers, name) for module in model.modules() for name in module._buffers]

    def read(self) -> list[Tensor | None]:
        """The present buffers, in a fixed order; None where a module holds none."""
        return [buffers[name] for buffers, name in self._slots]

    @torch.no_grad()
    def write(self, values: list[Tensor | None], only: list[int] | None = None) -> None:
        """Writes copies of ``values`` (all, or those with an index in ``only``): in place where they fit."""
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
    """Keeps a copy of the buffers as of the last accepted step and restores them on a skip.

    A large buffer that was not written to is not copied: a causal mask costs nothing. Small ones always
    are, because BatchNorm's kernels write running statistics without moving their version counter.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = Buffers(model)
        self._known: list[Tensor | None] = []
        self._copies: list[Tensor | None] = []
        self._packs: list[Pack] = []
        self._large: dict[int, int] = {}
        self._copy_all(self._buffers.read())

    @torch.no_grad()
    def accept(self) -> None:
        """The present buffers are good."""
        now = self._buffers.read()
        if any(buffer is not known for buffer, known in zip(now, self._known, strict=True)):
            self._copy_all(now)
            return
        for pack in self._packs:
            pack.save()
        for i in self._written_large(now):
            buffer, copy = now[i], self._copies[i]
            if buffer is not None and copy is not None:
                copy.copy_(buffer)
                self._large[i] = buffer._version

    @torch.no_grad()
    def jump(self) -> Tensor | None:
        """How far the small floating-point buffers have moved since they were accepted, 0-dim float32.

        Each buffer counts in units of its own norm; packs (dtypes) are combined as the L2 norm. None where
        there are none.
        """
        jumps = [jump for pack in self._packs if (jump := pack.jump()) is not None]
        return None if not jumps else jumps[0] if len(jumps) == 1 else torch.stack(jumps).norm()

    @torch.no_grad()
    def accept_unless(self, skip: Tensor) -> None:
        """``revert`` where ``skip`` (0-dim, on the device) is 1, else ``accept``; without a host read."""
        now = self._buffers.read()
        if any(buffer is not known for buffer, known in zip(now, self._known, strict=True)):
            self.revert() if bool(skip) else self.accept()
            return
        for pack in self._packs:
            pack.save_unless(skip)
        for i in self._written_large(now):
            buffer, copy = now[i], self._copies[i]
            if buffer is not None and copy is not None:
                copy.copy_(torch.where(skip.bool(), copy, buffer))
                buffer.copy_(copy)
                self._large[i] = buffer._version

    def state_dict(self) -> dict[str, Any]:
        """The norms that jumps are measured in; the buffers themselves are saved with the model."""
        return {"packs": [pack.state_dict() for pack in self._packs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``, once the buffers have been loaded and accepted."""
        for pack, saved in zip(self._packs, state["packs"], strict=False):
            pack.load_state_dict(saved)

    def revert(self) -> None:
        """Restores what was last accepted."""
        now = self._buffers.read()
        changed = [i for i, buffer in enumerate(now) if buffer is not self._known[i] or i not in self._large]
        self._buffers.write(self._copies, [*changed, *self._written_large(now)])
        after = self._buffers.read()
        if any(buffer is not known for buffer, known in zip(after, self._known, strict=True)):
            self._copy_all(after)
        else:
            self._large = {i: b._version for i in self._large if (b := after[i]) is not None}

    def _written_large(self, now: list[Tensor | None]) -> list[int]:
        """Where a large buffer was written to since the last call of ``accept`` or ``revert``."""
        marks = [(i, version, now[i]) for i, version in self._large.items()]
        return [i for i, version, buffer in marks if buffer is not None and buffer._version != version]

    @torch.no_grad()
    def _copy_all(self, now: list[Tensor | None]) -> None:
        """Copies all buffers, the small ones into packs; after this ``accept`` allocates nothing."""
        self._known = list(now)
        packed = [i for i, b in enumerate(now) if b is not None and b.numel() <= ALWAYS_COPIED_ELEMENTS]
        self._copies = [
            None if buffer is None or i in set(packed) else buffer.detach().clone()
            for i, buffer in enumerate(now)
        ]
        self._large = {i: b._version for i, b in enumerate(now) if b is not None and i not in set(packed)}
        self._packs = []
        for members in _alike(now, packed):
            pack = Pack([b for i in members if (b := now[i]) is not None])
            self._packs.append(pack)
            for i, copy in zip(members, pack.copies, strict=True):
                self._copies[i] = copy


def _fits(now: Tensor | None, value: Tensor) -> bool:
    return (
        now is not None
        and now.shape == value.shape
        and now.dtype == value.dtype
        and now.device == value.device
    )


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements share memory, as in an expanded tensor, which cannot be written in place."""
    return any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def _alike(buffers: list[Tensor | None], members: list[int]) -> list[list[int]]:
    """Indices of the buffers, grouped by dtype and device."""
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i in members:
        buffer = buffers[i]
        if buffer is not None:
            groups.setdefault((buffer.dtype, buffer.device), []).append(i)
    return list(groups.values())
