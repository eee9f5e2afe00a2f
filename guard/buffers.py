"""A skipped batch leaves no trace in the buffers: one forward on bad data ruins BatchNorm's statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BufferShield:
    """Keeps the buffers as the last accepted step left them and puts them back on a skip.

    Only buffers that were written to since are copied: a buffer that never changes, such as a causal
    mask, costs nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._copies = [buffer.detach().clone() for buffer in self._buffers]
        self._versions = [buffer._version for buffer in self._buffers]

    @torch.no_grad()
    def accept(self) -> None:
        """What the buffers hold now is good."""
        self._copy(forward=True)

    @torch.no_grad()
    def revert(self) -> None:
        """Back to what was last accepted."""
        self._copy(forward=False)

    def _copy(self, *, forward: bool) -> None:
        written = [i for i, b in enumerate(self._buffers) if b._version != self._versions[i]]
        if not written:
            return
        live: list[Tensor] = [self._buffers[i] for i in written]
        kept: list[Tensor] = [self._copies[i] for i in written]
        torch._foreach_copy_(kept, live) if forward else torch._foreach_copy_(live, kept)
        for i in written:
            self._versions[i] = self._buffers[i]._version
