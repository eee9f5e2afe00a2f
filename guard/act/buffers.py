"""A skipped batch leaves no trace in the buffers: one forward on bad data ruins BatchNorm's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from guard.act.pack import Pack
from guard.observe.watched import clean_name, unwrap

Slots = list[tuple[dict[str, Tensor | None], str]]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
ALWAYS_COPIED_ELEMENTS = 1 << 16
"""BatchNorm's statistics are far smaller, masks and tables that must not be copied each step far larger."""


class Buffers:
    """The buffers of a model, looked up by name: a module may put a new tensor in a buffer's place."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.slots, self.names = _slots(model), _names(model)

    def rescan(self) -> None:
        """Takes the modules that the model has now. A list of slots that was taken before stays as it is."""
        self.slots, self.names = _slots(self._model), _names(self._model)

    def read(self) -> list[Tensor | None]:
        """The present buffers, in a fixed order; None where a module holds none."""
        return [_read(*slot) for slot in self.slots]

    @torch.no_grad()
    def write(
        self, values: list[Tensor | None], only: list[int] | None = None, *, slots: Slots | None = None
    ) -> None:
        """Writes copies of ``values`` (all, or those with an index in ``only``): in place where they fit.

        Args:
            slots: where they belong, if that is not where they would be read from now.
        """
        live: list[Tensor] = []
        kept: list[Tensor] = []
        places = self.slots if slots is None else slots
        for i in range(len(values)) if only is None else only:
            buffers, name = places[i]
            now, value = _read(buffers, name), values[i]
            if value is None or not _fits(now, value):
                buffers[name] = None if value is None else value.clone()
            elif now is not None and not _overlaps(now):
                live.append(now)
                kept.append(value)
        if live:
            # Torch writes to a tensor made under inference_mode only there.
            with torch.inference_mode(any(buffer.is_inference() for buffer in live)):
                torch._foreach_copy_(live, kept)


class BufferShield:
    """Keeps a copy of the buffers as of the last accepted step and restores them on a skip.

    A large buffer that was not written to is not copied, nor a mask: it costs nothing. Small ones always
    are, because BatchNorm's kernels write running statistics without moving their version counter; so are
    those made under ``inference_mode``, which have none.

    Args:
        model: whose buffers.
        watch: name patterns of those whose jumps count, as in ``GuardConfig.watch_buffers``.
    """

    def __init__(self, model: nn.Module, watch: Sequence[str] = ("*",)) -> None:
        self._buffers = Buffers(model)
        self._watch = tuple(watch)
        self._known: list[Tensor | None] = []
        self._copies: list[Tensor | None] = []
        self._packs: list[Pack] = []
        self._large: dict[int, int] = {}
        self._copy_all(self._buffers.read())

    def begin(self) -> None:
        """What was accepted before counts no more: the norms that jumps are measured in are taken anew."""
        self._copy_all(self._buffers.read())

    @torch.no_grad()
    def accept(self, *, unless: Tensor | None = None) -> None:
        """The present buffers are good; where ``unless`` (0-dim, on the device) is 1, they are reverted.

        The host reads ``unless`` only where a module has a new tensor in a buffer's place.
        """
        now = self._buffers.read()
        if self._replaced(now):
            self._copy_all(now) if unless is None or not bool(unless) else self.revert()
            return
        for pack in self._packs:
            pack.save() if unless is None else pack.save_unless(unless)
        for i in self._written_large(now):
            buffer, copy = now[i], self._copies[i]
            if buffer is not None and copy is not None:
                if unless is not None:
                    buffer.copy_(torch.where(unless.bool(), copy, buffer))
                copy.copy_(buffer)
                self._large[i] = buffer._version

    @torch.no_grad()
    def jump(self) -> Tensor | float | None:
        """How far the small floating-point buffers have moved since they were accepted; on a device a 0-dim
        float32.

        Each buffer counts in units of its own norm; packs (dtypes) are combined as the L2 norm. None where
        there are none.
        """
        jumps = [jump for pack in self._packs if (jump := pack.jump()) is not None]
        if len(jumps) < 2:
            return jumps[0] if jumps else None
        return torch.stack([torch.as_tensor(jump) for jump in jumps]).norm()

    @property
    def only_statistics(self) -> bool:
        """Whether all that is watched are running statistics of normalization layers."""
        watched = [name for name in self._buffers.names if is_watched(name, self._watch)]
        return all(name.rpartition(".")[2] in _STATISTICS for name in watched)

    def state_dict(self) -> dict[str, Any]:
        """The norms that jumps are measured in; the buffers themselves are saved with the model."""
        return {"packs": [pack.state_dict() for pack in self._packs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``, once the buffers have been loaded and accepted."""
        for pack, saved in zip(self._packs, state["packs"], strict=False):
            pack.load_state_dict(saved)

    def rescan(self) -> None:
        """Takes the modules that the model has now, with their present buffers where they are others."""
        slots = self._buffers.slots
        self._buffers.rescan()
        if [(id(b), n) for b, n in slots] != [(id(b), n) for b, n in self._buffers.slots]:
            self._copy_all(self._buffers.read())

    def revert(self) -> None:
        """Restores what was last accepted."""
        now = self._buffers.read()
        changed = [i for i, buffer in enumerate(now) if buffer is not self._known[i] or i not in self._large]
        self._buffers.write(self._copies, [*changed, *self._written_large(now)])
        after = self._buffers.read()
        if self._replaced(after):
            self._copy_all(after)
        else:
            self._large = {i: b._version for i in self._large if (b := after[i]) is not None}

    def _replaced(self, now: list[Tensor | None]) -> bool:
        return any(buffer is not known for buffer, known in zip(now, self._known, strict=True))

    def _written_large(self, now: list[Tensor | None]) -> list[int]:
        """Where a large buffer was written to since the last call of ``accept`` or ``revert``."""
        marks = [(i, version, now[i]) for i, version in self._large.items()]
        return [i for i, version, buffer in marks if buffer is not None and buffer._version != version]

    @torch.no_grad()
    def _copy_all(self, now: list[Tensor | None]) -> None:
        """Copies all buffers, the small ones into packs; after this ``accept`` allocates nothing."""
        self._known, self._copies = list(now), [None] * len(now)
        self._large, self._packs = {}, []
        alike: dict[tuple[torch.dtype, torch.device, bool], dict[int, Tensor]] = {}
        for i, buffer in enumerate(now):
            if buffer is None:
                continue
            if buffer.is_inference() or (buffer.numel() <= ALWAYS_COPIED_ELEMENTS and not _is_mask(buffer)):
                watched = is_watched(self._buffers.names[i], self._watch)
                alike.setdefault((buffer.dtype, buffer.device, watched), {})[i] = buffer
            else:
                self._copies[i], self._large[i] = buffer.detach().clone(), buffer._version
        for (_, _, watched), members in alike.items():
            pack = Pack(list(members.values()), watched=watched)
            self._packs.append(pack)
            for i, copy in zip(members, pack.copies, strict=True):
                self._copies[i] = copy


def _slots(model: nn.Module) -> Slots:
    return [(m._buffers, name) for m in unwrap(model).modules() for name in _own_names(m)]


def _names(model: nn.Module) -> list[str]:
    found = [f"{path}.{name}" for path, m in unwrap(model).named_modules() for name in _own_names(m)]
    return [clean_name(name.lstrip(".")) for name in found]


def _own_names(module: nn.Module) -> list[str]:
    names = module._buffers.keys()  # TorchScript has a dict of its own, which has no iterator and no ``get``
    return list(names)


def _read(buffers: dict[str, Tensor | None], name: str) -> Tensor | None:
    return buffers[name] if name in buffers else None  # noqa: SIM401


@cache
def is_watched(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether the last of the patterns that match the name is not one that begins with ``!``."""
    last = [pattern for pattern in patterns if fnmatchcase(name, pattern.removeprefix("!"))][-1:]
    return bool(last) and not last[0].startswith("!")


def _is_mask(buffer: Tensor) -> bool:
    """Whether it holds infinities, as no statistics do."""
    return buffer.is_floating_point() and bool(torch.isinf(buffer).any())


def _fits(now: Tensor | None, value: Tensor) -> bool:
    if now is None:
        return False
    return (now.shape, now.dtype, now.device) == (value.shape, value.dtype, value.device)


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements share memory, as in an expanded tensor, which cannot be written in place."""
    return any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
