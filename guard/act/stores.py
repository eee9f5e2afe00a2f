"""Copies of tensors in memory that is allocated once and then reused.

The optimizer's state is copied tensor by tensor, in place, because ``load_state_dict`` replaces its
tensors and so leaves every cached list of them stale.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.act.buffers import Buffers, Slots
from guard.act.fingerprints import fingerprints, is_plain
from guard.config import SnapshotConfig
from guard.errors import GuardError
from guard.observe.shards import laid_out, layout, locals_of

Place = Literal["device", "host"]


class TensorStore:
    """A copy of a list of tensors (of sharded ones: this rank's part); saved and restored in one call.

    Args:
        place: ``host`` keeps the copies of CUDA tensors in pinned host memory.
        overlap: copies to the host are made on a side stream, while later work runs. Call ``wait`` before the
            tensors are changed. Otherwise they are made in their order on the current stream.
    """

    def __init__(self, place: Place = "device", *, overlap: bool = True) -> None:
        self._place, self._overlap = place, overlap
        self._copies: list[Tensor] = []
        self._plain: list[bool] = []
        self._sums: Tensor | None = None
        self._reserved: list[Tensor] = []
        self._devices: list[torch.device] = []
        self._ready_on: torch.device | None = None
        self._stream: torch.cuda.Stream | None = None
        self._ready: torch.cuda.Event | None = None

    @torch.no_grad()
    def save(self, tensors: Sequence[Tensor]) -> None:
        """Copies ``tensors``; allocates only when their number, shapes, dtypes or devices changed."""
        parts = locals_of(tensors)
        if not self.fits(tensors):
            fits = _alike(self._reserved, parts) and bool(parts)
            self._copies = self._reserved if fits else [self._allocate(part) for part in parts]
            self._devices, self._reserved = [part.device for part in parts], []
        to_host = self._place == "host" and any(part.is_cuda for part in parts)
        if to_host and self._overlap:
            self._copy_on_side_stream(parts)
        elif parts:
            torch._foreach_copy_(self._copies, parts, non_blocking=to_host)
        self._plain = list(map(is_plain, parts))
        self._sums = self._bits_of(parts)

    @torch.no_grad()
    def reserve(self, tensors: Sequence[Tensor]) -> None:
        """Allocates what ``save`` of these tensors will need; what it holds stays until then."""
        parts = locals_of(tensors)
        if not (self.fits(tensors) or _alike(self._reserved, parts)):
            self._reserved = [self._allocate(part) for part in parts]

    @torch.no_grad()
    def extend(self, tensors: Sequence[Tensor]) -> None:
        """Adds copies of further tensors to those it holds."""
        self.wait()
        for part in locals_of(tensors):
            self._copies.append(self._allocate(part).copy_(part))
            self._plain.append(is_plain(part))
            self._devices.append(part.device)
        self._sums = self._bits_of(self._copies)

    def intact(self) -> bool:
        """Whether the copies have the bits of what was copied; the host waits for the device."""
        if self._sums is None:
            return True
        if self._ready is not None:
            self._ready.synchronize()
        return torch.equal(self._sums.cpu(), self._bits_of(self._copies).cpu())

    def _bits_of(self, tensors: Sequence[Tensor]) -> Tensor:
        """The bits of each that is plain, and whose copy is, on the device of the first."""
        whole = zip(tensors, self._copies, self._plain, strict=True)
        return fingerprints([tensor for tensor, copied, plain in whole if plain and is_plain(copied)])

    @torch.no_grad()
    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Writes the copies back into ``tensors``, in place."""
        self.wait()
        if tensors:
            torch._foreach_copy_(locals_of(tensors), self._copies, non_blocking=self._ready is not None)

    def wait(self) -> None:
        """Work launched from now on starts only after the copies are complete; the host does not wait."""
        if self._ready is not None:
            torch.cuda.current_stream(self._ready_on).wait_event(self._ready)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether ``tensors`` match the copies in number, shapes, dtypes and devices."""
        parts = locals_of(tensors)
        return _alike(self._copies, parts) and all(
            device == part.device for device, part in zip(self._devices, parts, strict=True)
        )

    @property
    def copies(self) -> list[Tensor]:
        """The copies, on the devices of what was copied; valid until the next ``save``."""
        self.wait()
        return [copy.to(device) for copy, device in zip(self._copies, self._devices, strict=True)]

    def _allocate(self, part: Tensor) -> Tensor:
        if self._place == "host" and part.is_cuda:
            return torch.empty_like(part, device="cpu", pin_memory=True)
        return torch.empty_like(part)

    def _copy_on_side_stream(self, parts: Sequence[Tensor]) -> None:
        """After all that was launched so far, and in parallel to what is launched from now on."""
        self._ready_on = next(part.device for part in parts if part.is_cuda)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._ready_on)
        self._stream.wait_stream(torch.cuda.current_stream(self._ready_on))
        with torch.cuda.stream(self._stream):
            torch._foreach_copy_(self._copies, list(parts), non_blocking=True)
        for part in parts:
            if part.is_cuda:  # the allocator gives its memory to nobody else before it has been copied
                part.record_stream(self._stream)
        self._ready = self._stream.record_event()


def _alike(copies: Sequence[Tensor], parts: Sequence[Tensor]) -> bool:
    """In number, shapes and dtypes."""
    return len(copies) == len(parts) and all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(copies, parts, strict=True)
    )


class StateStore:
    """A copy of a state dict: its tensors in memory that is reused, the rest as ``copy.deepcopy`` makes it.

    Args:
        place: as of ``TensorStore``; the copies are made on the current stream, since nobody says when the
            tensors change next.
    """

    def __init__(self, place: Place = "device") -> None:
        self._tensors = TensorStore(place, overlap=False)
        self._layouts: list[Any] = []
        self._slots: list[object] = []
        self._rest: dict[str, Any] = {}

    def save(self, state: dict[str, Any]) -> None:
        tensors = list(_tensors_in(state).values())
        self._tensors.save(tensors)
        self._layouts = [layout(tensor) for tensor in tensors]
        self._slots = [object() for _ in tensors]
        memo: dict[int, Any] = {id(t): slot for t, slot in zip(tensors, self._slots, strict=True)}
        self._rest = copy.deepcopy(state, memo)  # which takes what is in its memo from there

    def reserve(self, state: dict[str, Any]) -> None:
        """Allocates what ``save`` of it will need."""
        self._tensors.reserve(list(_tensors_in(state).values()))

    def intact(self) -> bool:
        return self._tensors.intact()

    def load(self) -> dict[str, Any]:
        """A state dict of its own, on the devices of what was saved."""
        made = zip(self._slots, self._tensors.copies, self._layouts, strict=True)
        memo: dict[int, Any] = {id(slot): laid_out(part.clone(), laid) for slot, part, laid in made}
        return copy.deepcopy(self._rest, memo)


def _tensors_in(tree: Any) -> dict[int, Tensor]:
    """The plain tensors in nested dicts, lists and tuples, by identity."""
    if isinstance(tree, Tensor):
        plain = not (isinstance(tree, nn.Parameter) or tree.requires_grad or tree.is_quantized)
        return {id(tree): tree} if plain and tree.layout == torch.strided and not tree.is_meta else {}
    branches = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return {key: tensor for branch in branches for key, tensor in _tensors_in(branch).items()}


class BufferStore:
    """A copy of a model's buffers, of which some may be None."""

    def __init__(self) -> None:
        self._tensors = TensorStore()
        self._present: list[bool] = []
        self._slots: Slots = []

    def save(self, buffers: Buffers) -> None:
        now = buffers.read()
        self._slots = buffers.slots
        self._present = [buffer is not None for buffer in now]
        self._tensors.save([buffer for buffer in now if buffer is not None])

    def reserve(self, buffers: Buffers) -> None:
        self._tensors.reserve([buffer for buffer in buffers.read() if buffer is not None])

    def intact(self) -> bool:
        return self._tensors.intact()

    def restore(self, buffers: Buffers) -> None:
        copies = iter(self._tensors.copies)
        values = [next(copies) if present else None for present in self._present]
        buffers.write(values, slots=self._slots)


class OptimizerStore:
    """A copy of an optimizer's state and of the hyperparameters of its groups.

    It is of the parameters that the optimizer had: those that were added since lose their state when it is
    restored, and their groups stay.
    """

    def __init__(self, place: Place = "device") -> None:
        self._tensors = TensorStore(place)
        self._parameters: list[Tensor] = []
        self._layouts: list[Any] = []
        self._slots: list[tuple[int, str]] = []
        self._values: dict[int, dict[str, Any]] = {}
        self._groups: list[tuple[Tensor, dict[str, Any]]] = []

    def save(self, optimizer: Optimizer) -> None:
        self._parameters = parameters_of(optimizer)
        self._slots, tensors, self._values = _flatten(optimizer)
        self._tensors.save(tensors)
        self._layouts = [layout(tensor) for tensor in tensors]
        self.save_groups(optimizer)

    def reserve(self, optimizer: Optimizer) -> None:
        """Allocates what ``save`` of its present moments will need."""
        self._tensors.reserve(_flatten(optimizer)[1])

    def save_groups(self, optimizer: Optimizer) -> None:
        """Copies the hyperparameters alone."""
        self._groups = [
            (group["params"][0], {k: copy.deepcopy(v) for k, v in group.items() if k != "params"})
            for group in optimizer.param_groups
            if group["params"]
        ]

    def wait(self) -> None:
        self._tensors.wait()

    def intact(self) -> bool:
        return self._tensors.intact()

    def restore(self, optimizer: Optimizer, *, written: Collection[str] = ()) -> None:
        """Writes the copy back: in place where the layout is the same, else by rebuilding the state.

        Args:
            written: keys of the groups that the optimizer's own steps added; without a copy they are removed.
        """
        slots, tensors, values = _flatten(optimizer)
        present = parameters_of(optimizer)
        same = len(present) == len(self._parameters) and all(map(is_, present, self._parameters))
        alike = (slots, _keys(values)) == (self._slots, _keys(self._values))
        if same and alike and self._tensors.fits(tensors):
            self._tensors.restore(tensors)
            self._write_values(optimizer, present)
        else:
            self._rebuild(optimizer, present)
        self._restore_groups(optimizer, written)

    def _restore_groups(self, optimizer: Optimizer, written: Collection[str]) -> None:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for first, saved in self._groups:
            group = groups.get(id(first))
            if group is None:
                continue
            for key in written:
                if key not in saved:
                    group.pop(key, None)
            for key, value in saved.items():
                _assign(group, key, value)

    def _rebuild(self, optimizer: Optimizer, present: list[Tensor]) -> None:
        for parameter in present:
            state_of(optimizer).pop(parameter, None)
        known = {id(parameter) for parameter in present}
        for (index, key), copied, laid in zip(self._slots, self._tensors.copies, self._layouts, strict=True):
            if id(self._parameters[index]) in known:
                state_of(optimizer)[self._parameters[index]][key] = laid_out(copied.clone(), laid)
        self._write_values(optimizer, present)

    def _write_values(self, optimizer: Optimizer, present: list[Tensor]) -> None:
        known = {id(parameter) for parameter in present}
        for index, values in self._values.items():
            if id(self._parameters[index]) in known:
                state_of(optimizer)[self._parameters[index]].update(copy.deepcopy(values))


def _assign(group: dict[str, Any], key: str, value: Any) -> None:
    """A rate that is a tensor is written in place: a CUDA graph reads that very tensor."""
    now = group.get(key)
    if isinstance(value, Tensor) and isinstance(now, Tensor) and now.shape == value.shape:
        with torch.no_grad():
            now.copy_(value)
    else:
        group[key] = copy.deepcopy(value)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Of all its groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def state_of(optimizer: Optimizer) -> Any:
    """Its moments by parameter; of ``ZeroRedundancyOptimizer`` those of this rank's shard."""
    return optimizer.optim.state if is_zero(optimizer) else optimizer.state


def is_zero(optimizer: Any) -> TypeGuard[Any]:
    """Whether it is torch's ``ZeroRedundancyOptimizer``: each rank steps a shard and sends its weights."""
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    return module is not None and isinstance(optimizer, module.ZeroRedundancyOptimizer)


def _flatten(optimizer: Optimizer) -> tuple[list[tuple[int, str]], list[Tensor], dict[int, dict[str, Any]]]:
    slots: list[tuple[int, str]] = []
    tensors: list[Tensor] = []
    values: dict[int, dict[str, Any]] = {}
    for index, parameter in enumerate(parameters_of(optimizer)):
        for key, value in state_of(optimizer).get(parameter, {}).items():
            if isinstance(value, Tensor):
                slots.append((index, key))
                tensors.append(value)
            else:
                values.setdefault(index, {})[key] = copy.deepcopy(value)
    return slots, tensors, values


def _keys(values: dict[int, dict[str, Any]]) -> list[tuple[int, list[str]]]:
    return [(index, list(entries)) for index, entries in values.items()]


@contextmanager
def advice_on_memory(config: SnapshotConfig, device: torch.device) -> Iterator[None]:
    """Around what takes memory for snapshots: says what to lower where there is not so much."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError, and that pinned memory cannot be allocated
        if "memory" not in str(error):
            raise
        on_host = config.place == "host" and device.type == "cuda"
        lower = f"snapshot.keep to 2 (it is {config.keep})" if config.keep > 2 else "update_norm to off"
        other = ", or snapshot.place to host" if device.type == "cuda" and not on_host else ""
        where = "pinned memory of the host" if on_host else f"memory on {device}"
        raise GuardError(
            f"not enough {where} for {config.keep} snapshots of weights and moments: set {lower}{other}, or "
            "divide the model over more devices"
        ) from error
