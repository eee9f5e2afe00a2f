"""A CUDA device that is simulated on the CPU, to count when the host waits for it.

A tensor on it says ``cuda:0`` and is computed on the CPU. There is no autograd on it: gradients are set.
There are no streams, so it shows no race.
"""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA = torch.device("cuda", 0)
_FACTORIES = ("tensor", "empty", "zeros", "ones", "full", "arange", "empty_like", "zeros_like", "ones_like")
_TO_PYTHON = ("item", "tolist", "__float__", "__int__", "__bool__", "__index__")
_SET_THE_DEVICE = ("__getitem__", "__setitem__", "copy_")
"""Bindings that set the current device before they dispatch."""
_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")


class OnDevice(Tensor):
    """Says that it is on ``cuda:0``; ``held`` has the elements, and is shared by views."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, None)


class SimulatedCuda:
    """Within it, tensors can be made on ``cuda:0``; ``waits`` says where the host waited for them."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.ops: list[str] = []
        """What was launched on it."""
        self._open = ExitStack()

    def __enter__(self) -> SimulatedCuda:
        # Of torch's API of streams: nothing is ever in flight here.
        self._open.enter_context(patch.object(torch.cuda, "Event", _Event))
        self._open.enter_context(patch.object(torch.cuda, "current_stream", lambda _: None))
        self._open.enter_context(_Ops(self.waits, self.ops))
        self._open.enter_context(_Calls(self.waits))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()


class _Event:
    def record(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


def on_device(model: nn.Module) -> nn.Module:
    """The model, with parameters and buffers on the simulated device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnDevice(parameter.detach()))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else OnDevice(buffer)
    return model


class _Ops(TorchDispatchMode):
    def __init__(self, waits: list[str], ops: list[str]) -> None:
        super().__init__()
        self._waits, self._ops = waits, ops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and any(isinstance(leaf, OnDevice) for leaf in tree_flatten((args, kwargs))[0]):
            self._ops.append(func._schema.name)
        return _run(func, args, kwargs or {}, self._waits)


class _Calls(TorchFunctionMode):
    """What torch's bindings refuse without CUDA: a factory or ``to`` with such a device, pinned memory."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        kwargs.pop("pin_memory", None)
        if name in _FACTORIES and _is_cuda(kwargs.get("device")):
            made = func(*args, **{**kwargs, "device": "cpu"})
            if name == "tensor":
                _note(self._waits, "a pageable copy")
            return OnDevice(made)
        if name == "to" and any(map(_is_cuda, (*args[1:], *kwargs.values()))):
            return self._to_device(*args, **kwargs)
        if name in _TO_PYTHON and isinstance(args[0], OnDevice):
            _note(self._waits, name)
            return func(args[0].held)
        if name in _SET_THE_DEVICE and isinstance(args[0], OnDevice):
            if name == "copy_" and not isinstance(args[1], OnDevice) and not kwargs.get("non_blocking"):
                _note(self._waits, "a blocking copy")
            made = func(*tree_map_only(OnDevice, lambda leaf: leaf.held, args), **kwargs)
            return args[0] if made is args[0].held else OnDevice(made) if name == "__getitem__" else made
        return func(*args, **kwargs)

    def _to_device(self, tensor: Tensor, *rest: Any, non_blocking: bool = False, **options: Any) -> Tensor:
        dtypes = [value for value in (*rest, *options.values()) if isinstance(value, torch.dtype)]
        if not isinstance(tensor, OnDevice):
            if not non_blocking:
                _note(self._waits, "a blocking copy")
            tensor = OnDevice(tensor.clone())
        return tensor.to(dtypes[0]) if dtypes else tensor


def _run(func: Any, args: Any, kwargs: Any, waits: list[str] | None) -> Any:
    """On the CPU; what comes of tensors on the device is there too, unless it was asked for elsewhere."""
    flat = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    wrapped = {id(leaf.held): leaf for leaf in flat if isinstance(leaf, OnDevice)}
    to_host = "device" in kwargs and not _is_cuda(kwargs["device"])
    if waits is not None and wrapped and _waits_for(func, flat, args, kwargs, to_host=to_host):
        _note(waits, str(func))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(OnDevice, lambda leaf: leaf.held, (args, kwargs))
    made = func(*args, **kwargs)
    if not wrapped or to_host or (func._schema.name == "aten::copy_" and not isinstance(flat[0], OnDevice)):
        return made
    known = {id(held.held): held for held in wrapped.values()}
    return tree_map_only(Tensor, lambda leaf: known[id(leaf)] if id(leaf) in known else OnDevice(leaf), made)


def _waits_for(func: Any, tensors: list[Tensor], args: Any, kwargs: Any, *, to_host: bool) -> bool:
    name = func._schema.name
    if name in _READS or to_host:
        return not kwargs.get("non_blocking")
    crosses = len({isinstance(tensor, OnDevice) for tensor in tensors}) > 1
    blocking = not kwargs.get("non_blocking") and not any(argument is True for argument in args)
    return name == "aten::copy_" and crosses and blocking


def _note(waits: list[str], what: str) -> None:
    frames = [frame for frame in traceback.extract_stack() if "/guard/" in frame.filename]
    own = [frame for frame in frames if "/tests/" not in frame.filename]
    waits.append(f"{what} at {own[-1].filename.rpartition('/guard/')[2]}:{own[-1].lineno}" if own else what)


def _is_cuda(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.startswith("cuda")
    )
