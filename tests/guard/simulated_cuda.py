"""A CUDA device that is simulated on the CPU, to count when the host waits for it.

A tensor on it says ``cuda:0`` and is computed on the CPU. There is no autograd on it: gradients are set.
What is copied on a side stream is copied as late as it may be: when another stream waits for it.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from guard import GradientGuard, GuardConfig

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

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        stream.kept.add(id(self))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, None)


class SimulatedCuda:
    """Within it, tensors can be made on ``cuda:0``; ``waits`` says where the host waited for them."""

    def __init__(self, *, pinned_bytes: float = math.inf) -> None:
        self.waits: list[str] = []
        self.ops: list[str] = []
        """What was launched on it."""
        self.pinned_bytes = pinned_bytes
        """How much memory of the host snapshots can pin."""
        self.snapshot_bytes = 0
        """What they have pinned: memory in the form of another tensor."""
        self.pinned: set[int] = set()
        """The addresses of that memory."""
        self.streams: list[Stream] = [Stream()]
        """The current one is the last."""
        self._open = ExitStack()

    def __enter__(self) -> SimulatedCuda:
        # Of torch's API of streams.
        for name, value in {
            "Event": Event,
            "Stream": Stream,
            "current_stream": lambda _: self.streams[-1],
            "stream": self._on,
        }.items():
            self._open.enter_context(patch.object(torch.cuda, name, value))
        self._open.enter_context(_Ops(self))
        self._open.enter_context(_Calls(self))
        return self

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        self.streams.append(stream)
        yield
        self.streams.pop()

    def pin(self, tensor: Any, *, snapshot: bool) -> None:
        self.snapshot_bytes += tensor.nbytes if snapshot else 0
        if self.snapshot_bytes > self.pinned_bytes:
            raise RuntimeError("CUDA error: out of memory")
        self.pinned.add(tensor.data_ptr())

    def __exit__(self, *error: Any) -> None:
        self._open.close()


class Stream:
    """What is launched on a side stream is done when somebody waits for it."""

    def __init__(self, device: Any = None) -> None:
        self._late: list[Callable[[], Any]] = []
        self._read: list[Tensor] = []
        self.kept: set[int] = set()
        """The tensors whose memory is kept until it is done."""

    def launch(self, work: Callable[[], Any], tensors: list[Tensor]) -> None:
        self._late.append(work)
        self._read += [tensor for tensor in tensors if isinstance(tensor, OnDevice)]

    def wait_stream(self, other: Stream) -> None:
        other.run()

    def record_event(self) -> Event:
        event = Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        event.synchronize()

    def run(self) -> None:
        assert {id(tensor) for tensor in self._read} <= self.kept, "memory may be reused while it is copied"
        late, self._late, self._read = self._late, [], []
        for work in late:
            work()


class Event:
    def record(self, stream: Stream) -> None:
        self._stream = stream

    def synchronize(self) -> None:
        self._stream.run()


def on_device(model: nn.Module) -> nn.Module:
    """The model, with parameters and buffers on the simulated device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnDevice(parameter.detach()))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else OnDevice(buffer)
    return model


class Average:
    """Averaged weights on the device, that a loop updates right after a step."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [p.detach().clone() for p in model.parameters()]

    def update(self, model: nn.Module) -> None:
        for mine, weight in zip(self.weights, model.parameters(), strict=True):
            mine.mul_(0.9).add_(weight.detach(), alpha=0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "decay": 0.9}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert all(isinstance(weight, OnDevice) for weight in state["weights"])
        self.weights = state["weights"]


class Loop:
    """A guarded model on the simulated device; every gradient is the same."""

    def __init__(
        self,
        device: SimulatedCuda,
        config: dict[str, Any],
        *,
        tensor_rate: bool = False,
        dtype: torch.dtype = torch.float32,
        averaged: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 8))
        self.model = on_device(model.to(dtype))
        self.rate = torch.full((), 1e-3, device=CUDA) if tensor_rate else 1e-3
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.rate, fused=True)
        settings = GuardConfig.model_validate({"update_norm": "off", **config})
        self.average = Average(self.model) if averaged else None
        self.guard = GradientGuard(self.model, self.optimizer, settings, ema=self.average)
        self.gradients = [OnDevice(1e-2 * torch.randn(p.shape, dtype=dtype)) for p in self.model.parameters()]

    def step(self) -> Any:
        for parameter, gradient in zip(self.model.parameters(), self.gradients, strict=True):
            parameter.grad = gradient.clone()
        loss = OnDevice(torch.tensor(1.0))
        self.device.waits.clear()
        self.guard.observe_loss(loss)
        return self.guard.step()


class _Ops(TorchDispatchMode):
    def __init__(self, device: SimulatedCuda) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if not func.is_view and any(isinstance(tensor, OnDevice) for tensor in tensors):
            self._device.ops.append(func._schema.name)
        if len(self._device.streams) > 1:  # copies, which return nothing
            if _waits_for(func, args, kwargs or {}, self._device.pinned):
                _note(self._device.waits, str(func))
            work = partial(_run, func, args, kwargs or {}, None)
            return self._device.streams[-1].launch(work, tensors)
        return _run(func, args, kwargs or {}, self._device)


class _Calls(TorchFunctionMode):
    """What torch's bindings refuse without CUDA: a factory or ``to`` with such a device, pinned memory."""

    def __init__(self, device: SimulatedCuda) -> None:
        super().__init__()
        self._device, self._waits = device, device.waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if kwargs.pop("pin_memory", None):
            made = func(*args, **kwargs)
            self._device.pin(made, snapshot=name == "empty_like")
            return made
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


def _run(func: Any, args: Any, kwargs: Any, device: SimulatedCuda | None) -> Any:
    """On the CPU; what comes of tensors on the device is there too, unless it was asked for elsewhere."""
    flat = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    wrapped = {id(leaf.held): leaf for leaf in flat if isinstance(leaf, OnDevice)}
    to_host = _to_host(kwargs)
    if device is not None and wrapped and _waits_for(func, args, kwargs, device.pinned):
        _note(device.waits, str(func))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(OnDevice, lambda leaf: leaf.held, (args, kwargs))
    made = func(*args, **kwargs)
    if not wrapped or to_host or (func._schema.name == "aten::copy_" and not isinstance(flat[0], OnDevice)):
        return made
    known = {id(held.held): held for held in wrapped.values()}
    return tree_map_only(Tensor, lambda leaf: known[id(leaf)] if id(leaf) in known else OnDevice(leaf), made)


def _to_host(kwargs: Any) -> bool:
    return "device" in kwargs and not _is_cuda(kwargs["device"])


def _waits_for(func: Any, args: Any, kwargs: Any, pinned: set[int]) -> bool:
    name = func._schema.name
    if name in _READS or (_to_host(kwargs) and not name.startswith("aten::empty")):
        return not kwargs.get("non_blocking")
    if name not in ("aten::copy_", "aten::_foreach_copy_"):
        return False
    blocking = not kwargs.get("non_blocking") and not any(argument is True for argument in args)
    into, source = (argument if isinstance(argument, list) else [argument] for argument in args[:2])
    pairs = [
        (a, b)
        for a, b in zip(into, source, strict=True)
        if isinstance(a, OnDevice) is not isinstance(b, OnDevice)
    ]
    return any(blocking or not (isinstance(a, OnDevice) or a.data_ptr() in pinned) for a, b in pairs)


def _note(waits: list[str], what: str) -> None:
    frames = [frame for frame in traceback.extract_stack() if "/guard/" in frame.filename]
    own = [frame for frame in frames if "/tests/" not in frame.filename]
    waits.append(f"{what} at {own[-1].filename.rpartition('/guard/')[2]}:{own[-1].lineno}" if own else what)


def _is_cuda(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.startswith("cuda")
    )
