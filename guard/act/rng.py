"""The state of every random number generator a training step draws from, as plain numbers and tensors."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


def devices_of(model: nn.Module) -> list[torch.device]:
    """The CUDA devices of a model: dropout draws from the generator of each, whichever is the current one."""
    found = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    return sorted(found, key=str)


def capture(devices: Sequence[torch.device] = (), *, quick: bool = False) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators.

    Args:
        devices: whose generators are captured too; of none, that of the current device where there is one.
        quick: for each step: NumPy's is read again only where it has drawn or was set. What it keeps of a
            pair of normal numbers may then be missed, where a state was set that differs in nothing else.
    """
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": list(_numpy.state(quick=quick)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        known = {str(device): torch.cuda.get_rng_state(device) for device in devices}
        state["cuda"] = known or torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Continues every generator from ``capture``'s state."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    _numpy.forget()
    torch.set_rng_state(state["torch"])
    generators = state.get("cuda", {})
    if isinstance(generators, torch.Tensor):
        generators = {"cuda": generators}  # of the current device
    for device, generator in generators.items():
        torch.cuda.set_rng_state(generator, device)


def equal(one: Any, other: Any) -> bool:
    """Whether two states of ``capture`` are the same."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


class _NumpyGenerator:
    """NumPy's legacy generator, whose state is slow to read."""

    _BYTES = 2500
    """Of an MT19937 in memory: its 624 words, then its position, 32 bits each."""

    def __init__(self) -> None:
        self._memory, self._state = b"", ("", torch.zeros(0, dtype=torch.int64))

    def state(self, *, quick: bool) -> tuple[Any, ...]:
        """As of ``np.random.get_state(legacy=True)``, the words as a tensor of int64."""
        memory = self._read()
        if not quick or not memory or memory != self._memory:
            name, words, *rest = np.random.get_state(legacy=True)
            self._state = (str(name), torch.from_numpy(np.asarray(words).astype(np.int64)), *rest)
            known = memory == np.append(words, np.uint32(rest[0])).tobytes()
            # A second normal number that is kept (rest[1]) can be drawn without a trace in memory.
            self._memory = memory if known and not rest[1] else b""
        return self._state

    def forget(self) -> None:
        self._memory = b""

    def _read(self) -> bytes:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if not isinstance(generator, np.random.MT19937):
            return b""
        return ctypes.string_at(generator.ctypes.state_address, self._BYTES)


_numpy = _NumpyGenerator()
