"""Gradient accumulation: a micro-batch that is not finite is dropped, and the others are kept; what a
communication hook remembers of a bad one too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from guard.act.buffers import BufferShield
from guard.observe.fsdp2 import gathered
from guard.observe.local_norms import comm_states, find_ddp
from guard.observe.shards import is_distributed
from guard.records import Action

_ERRORS, _FACTORS = "error_dict", ("p_memory_dict", "q_memory_dict")
"""Of torch's ``PowerSGDState``: what was not sent, new in each step; its factors, written in place."""


class GradAccumulation:
    """The micro-batches between two optimizer steps.

    Where a micro-batch is known to be one of several (by DDP's ``no_sync``, or because the step before had
    several), the host reads its loss before its backward. One whose loss is not finite still goes through
    backward, because other ranks wait for its all-reduce, but adds zeros.

    Args:
        model: the module or its DDP wrapper.
        parameters: those whose gradients are accumulated; a list that follows what the optimizer steps.
        active: whether anything of the present attempt may be dropped. The same on all ranks.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor], *, active: Callable[[], bool]) -> None:
        self._model = model
        self._ddp = find_ddp(model)
        self._parameters = parameters
        self._active = active
        self._before = 1
        self._now = 0
        self._shield: BufferShield | None = None
        self.excluded = False
        self._sharded = any(map(is_distributed, parameters))
        self._comm = CommMemory(lambda: comm_states(self._ddp))
        self._known = 0, 0
        """Identity and version of a gradient after the last backward."""

    def restart(self, *, excluded: bool = False) -> None:
        """The same micro-batches come again; ``excluded``: this rank drops all of them."""
        self._now, self.excluded = 0, excluded
        self._comm.revert()

    def begin(self, loss: Tensor) -> bool:
        """Starts a micro-batch. Returns whether it is dropped: its backward then runs in ``dropping``."""
        self._now += 1
        if self.excluded:
            return True
        if not self._active():
            self._shield = None  # what it would restore is no longer what was before the batch
            return False
        if not self._several():
            return False
        if self._shield is None:
            self._shield = BufferShield(self._model)
            return False  # the first of all, also where it is not finite: the buffers before it are unknown
        finite = bool(torch.isfinite(loss))
        if finite:
            self._shield.accept()
        return not finite

    def ran(self) -> None:
        """The micro-batch's backward is over: notes a gradient, to see later whether it was discarded."""
        gradient = self._first_gradient()
        self._known = (0, 0) if gradient is None else (id(gradient), gradient._version)

    def forget(self) -> None:
        """The backward of the last micro-batch failed: it is none of the step's."""
        self._now -= 1

    def discarded(self) -> bool:
        """Whether the gradients of the micro-batches so far are gone: dropped, or set to zero."""
        if self._sharded:  # FSDP keeps them elsewhere until the last micro-batch
            return False
        gradient, (place, version) = self._first_gradient(), self._known
        gone = gradient is None
        if gradient is not None and id(gradient) == place and gradient._version != version:
            gone = not gradient.is_sparse and not bool(gradient.any())
        self._now = 0 if gone else self._now
        return gone

    def _first_gradient(self) -> Tensor | None:
        return next((p.grad for p in self._parameters if p.grad is not None), None)

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Around a backward whose gradients must add nothing; forward leaves no trace in the buffers."""
        whole = gathered(self._model) if self._sharded else []
        handles = [p.register_hook(torch.zeros_like) for p in (*self._parameters, *whole) if p.requires_grad]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if self._shield is not None:
                self._shield.revert()  # not earlier: backward still needs what forward left

    def close(self, action: Action | None) -> None:
        """The step was taken or not, or (None) the device will decide: the next micro-batch is the first of
        the next step."""
        if action is None:
            self._comm.release()
        elif action in ("applied", "clipped"):
            self._comm.accept()
        else:
            self._comm.revert(forget=action == "rolled_back")
        self._before, self._now, self.excluded = max(1, self._now), 0, False
        if self._shield is not None:
            self._shield.accept()

    def skipped_late(self) -> None:
        """The device skipped a step whose gradients the communication hook has added to the next already."""
        self._comm.revert(forget=True)

    def _several(self) -> bool:
        no_sync = self._ddp is not None and not self._ddp.require_backward_grad_sync
        return no_sync or self._now > 1 or self._before > 1


def correction(micro_batches: int, dropped: int) -> float:
    """What the accumulated gradient is multiplied with when some micro-batches were dropped from its mean."""
    return micro_batches / (micro_batches - dropped) if dropped < micro_batches else 1.0


class CommMemory:
    """PowerSGD adds what it could not send to the next gradient: one NaN would stay in all that follow.

    Args:
        states: of the present hooks; those without such a memory are left alone.
    """

    def __init__(self, states: Callable[[], Iterable[Any]]) -> None:
        self._find = states
        self._kept: dict[int, dict[str, Any]] = {}

    def accept(self) -> None:
        """The step was applied: keeps what is remembered now."""
        for state in self._states():
            factors = {n: {i: t.clone() for i, t in getattr(state, n).items()} for n in _FACTORS}
            kept = {_ERRORS: dict(getattr(state, _ERRORS)), **factors}
            self._kept[id(state)] = kept | {"iter": state.iter, "rng": state.rng.get_state()}

    def release(self) -> None:
        """What was accepted is no longer known to be what was before the present batch."""
        self._kept = {}

    def revert(self, *, forget: bool = False) -> None:
        """As it was when accepted; ``forget``: empty, since the gradients were of weights that are gone."""
        for state in self._states():
            kept = self._kept.get(id(state), {})
            for name in (_ERRORS, *_FACTORS):
                tensors = {} if forget else kept.get(name, {})
                getattr(state, name).clear()
                getattr(state, name).update({i: t.clone() for i, t in tensors.items()})
            if kept:
                state.iter = kept["iter"]
                state.rng.set_state(kept["rng"])

    def _states(self) -> list[Any]:
        return [state for state in self._find() if isinstance(getattr(state, _ERRORS, None), dict)]
