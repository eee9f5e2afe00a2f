"""Fault injection: the public interface through which a test, a drill or a benchmark breaks a training run.

Call ``begin`` once an attempt, then pass the batch and the loss through ``batch`` and ``loss``:

    faults.begin(guard.steps)
    batch = faults.batch(batch)
    guard.backward(faults.loss(loss_fn(model, batch)))

A fault fires on the first ``times`` attempts at or after its step. A replay after a rollback does not fire it
again: the counts are not rolled back.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.faults.config import FaultConfig, Kind
from guard.observe.watched import parameter_names, unwrap

T = TypeVar("T")
_INTEGER_VIEW = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}
_INTEGER_VIEW[torch.float16] = torch.int16


class FaultInjector:
    """Breaks this rank's training as configured."""

    def __init__(
        self, faults: Sequence[FaultConfig], *, model: nn.Module, optimizer: Optimizer, rank: int = 0
    ) -> None:
        self._faults = list(faults)
        self._fired = [0] * len(self._faults)
        self._rank = rank
        self._optimizer = optimizer
        self._armed: list[FaultConfig] = []
        self._model = unwrap(model)
        self._named = {n: p for n, p in parameter_names(model).items() if p.requires_grad}
        self._unscaled: list[Any] = []
        self._hook_model()
        if any(fault.kind in ("lr_spike", "lr_drift") for fault in self._faults):
            optimizer.register_step_pre_hook(self._raise_lr)
            optimizer.register_step_post_hook(self._reset_lr)

    def begin(self, step: int) -> list[FaultConfig]:
        """Starts an attempt at the step after ``step``; returns the faults that fire on this rank."""
        self._armed = []
        for i, fault in enumerate(self._faults):
            if step >= fault.step and self._fired[i] < fault.times:
                self._fired[i] += 1
                if fault.rank in (None, self._rank):
                    self._armed.append(fault)
        for fault in self._of("bitflip_weight"):
            flip_bit_(self._target(fault), fault.index, fault.bit)
        for fault in self._of("bitflip_moment"):
            self._flip_moment(fault)
        for fault in self._of("poisoned_buffers"):
            self._poison_buffers(fault)
        return list(self._armed)

    def repeat(self) -> None:
        """The same batch is computed again: a hardware fault in it does not occur a second time."""
        self._armed = [fault for fault in self._armed if fault.kind != "bitflip_gradient"]

    def _flip_moment(self, fault: FaultConfig) -> None:
        """In the optimizer's first moment, if it has one yet."""
        state = self._optimizer.state.get(self._target(fault), {})
        for name in ("exp_avg", "momentum_buffer"):
            if isinstance(moment := state.get(name), Tensor):
                flip_bit_(moment, fault.index, fault.bit)
                return

    @torch.no_grad()
    def _poison_buffers(self, fault: FaultConfig) -> None:
        for name, buffer in self._model.named_buffers():
            if fnmatch.fnmatch(name, fault.parameter) and buffer.is_floating_point():
                buffer.mul_(fault.factor)

    def batch(self, batch: T) -> T:
        """The batch, its floating-point tensors multiplied if it is to be poisoned.

        Noise in the labels shifts each sample's label to the next sample: labels are what has that name in a
        dictionary, else the last integer tensor of a tuple or list.
        """
        for fault in self._of("poisoned_batch"):
            factor = fault.factor
            batch = _map_floats(batch, lambda tensor: tensor * factor)  # noqa: B023 - used at once
        return _shift_labels(batch) if self._of("label_noise") else batch

    def loss(self, loss: Tensor) -> Tensor:
        return loss * float("nan") if self._of("nan_loss") else loss

    def _of(self, kind: Kind) -> list[FaultConfig]:
        return [fault for fault in self._armed if fault.kind == kind]

    def _target(self, fault: FaultConfig) -> Tensor:
        matches = [p for n, p in self._named.items() if fnmatch.fnmatch(n, fault.parameter)]
        if not matches:
            raise ValueError(f"fault {fault.kind}: no parameter matches {fault.parameter!r}")
        return max(matches, key=lambda p: p.numel())

    def _hook_model(self) -> None:
        for fault in self._faults:
            if fault.kind in ("bitflip_weight", "bitflip_moment"):
                self._target(fault)
            elif fault.kind == "bitflip_gradient":
                self._target(fault).register_hook(self._when_armed(fault, _with_flipped_bit))
            elif fault.kind == "scaled_gradient":
                self._target(fault)
                scale = self._when_armed(fault, lambda f, gradient: gradient * f.factor)
                for name, parameter in self._named.items():
                    if fnmatch.fnmatch(name, fault.parameter):
                        parameter.register_hook(scale)
            elif fault.kind == "infinite_activation":
                target = self._target(fault)
                layers = [m for m in self._model.modules() if any(p is target for p in m.parameters(False))]
                layers[0].register_forward_hook(self._when_armed(fault, _infinite))

    def _when_armed(
        self, fault: FaultConfig, change: Callable[[FaultConfig, Any], Any]
    ) -> Callable[..., Any]:
        """A hook of a tensor or a module that changes the gradient or the output while the fault is armed."""

        def hook(*arguments: Any) -> Any:
            return change(fault, arguments[-1]) if any(a is fault for a in self._armed) else None

        return hook

    def _raise_lr(self, optimizer: Optimizer, *_: Any) -> None:
        self._unscaled = [group["lr"] for group in optimizer.param_groups]
        for fault in (*self._of("lr_spike"), *self._of("lr_drift")):
            times = self._fired[self._faults.index(fault)] if fault.kind == "lr_drift" else 1
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * fault.factor**times

    def _reset_lr(self, optimizer: Optimizer, *_: Any) -> None:
        for group, lr in zip(optimizer.param_groups, self._unscaled, strict=False):
            group["lr"] = lr
        self._unscaled = []

    def state_dict(self) -> dict[str, Any]:
        return {"fired": list(self._fired)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with the counts of ``state_dict``; a changed list of faults starts from zero."""
        if len(state["fired"]) == len(self._fired):
            self._fired = [int(n) for n in state["fired"]]


@torch.no_grad()
def flip_bit_(tensor: Tensor, index: int, bit: int) -> None:
    """Flips one bit of element ``index`` (modulo the size) of a floating-point tensor, in place.

    The tensor's version does not show it: memory fails without a word to torch.
    """
    integer = _INTEGER_VIEW[tensor.dtype]
    width = torch.iinfo(integer).bits
    place = tuple(int(i) for i in np.unravel_index(index % tensor.numel(), tensor.shape))
    element = tensor[place].reshape(1).clone().view(integer)
    mask = 1 << (bit % width)
    mask = mask - (1 << width) if mask >= 1 << (width - 1) else mask
    tensor.data[place] = (element ^ mask).view(tensor.dtype)[0]


def _with_flipped_bit(fault: FaultConfig, gradient: Tensor) -> Tensor:
    broken = gradient.clone()
    flip_bit_(broken, fault.index, fault.bit)
    return broken


def _infinite(_: FaultConfig, output: Any) -> Any:
    return _map_floats(output, lambda tensor: tensor + float("inf"))


def _shift_labels(batch: T) -> T:
    shifted: Any = batch
    if isinstance(batch, dict):
        names = [name for name in ("labels", "label", "targets", "target") if name in batch]
        return {**batch, names[0]: batch[names[0]].roll(1, 0)} if names else batch  # type: ignore[return-value]
    if isinstance(batch, tuple | list):
        places = [i for i, v in enumerate(batch) if isinstance(v, Tensor) and not v.is_floating_point()]
        items = [v.roll(1, 0) if places and i == places[-1] else v for i, v in enumerate(batch)]
        shifted = type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return shifted


def _map_floats(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _map_floats(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_floats(item, change) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_map_floats(item, change) for item in value)
    return value
