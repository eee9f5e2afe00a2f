"""Each rank's gradient norm before the all-reduce: it names the rank that a bad gradient came from.

Two ways to see a gradient while it is still local. Post-accumulate-grad hooks, one a parameter, fire before
DDP's reducer and read the gradient while it is in the cache: cheapest on a CPU. A DDP communication hook sees
whole buckets: a few kernel launches a bucket instead of one a parameter, which is what counts on a GPU. DDP
takes one communication hook only, so the user's own is given to the guard and called by it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from guard.errors import GuardError
from guard.observe.gradients import elements
from guard.observe.norms import norm

By = Literal["auto", "hooks", "comm"]
CommHook = Callable[[Any, Any], torch.futures.Future[Tensor]]


class LocalNorms:
    """The local L2 norms of the gradients of one backward; make it with ``local_norms``."""

    def __init__(self, ddp: DistributedDataParallel | None) -> None:
        self._ddp = ddp
        self._armed = False
        self._scale = 1.0
        self._norms: dict[int, Tensor] = {}

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Measures these from now on."""

    def arm(self, wanted: bool, scale: float = 1.0) -> None:
        """Sets before a backward whether its local norm is measured, and how its loss is scaled."""
        self._armed = wanted and (self._ddp is None or self._ddp.require_backward_grad_sync)
        self._scale = scale
        self._norms = {}

    def take(self) -> float:
        """The local L2 norm of the last backward; NaN when it was not measured."""
        total = self.total()
        return math.nan if total is None else float(total) / self._scale

    def total(self) -> Tensor | None:
        """The same on the gradients' device, 0-dim, still scaled; None when it was not measured."""
        return torch.linalg.vector_norm(torch.stack(list(self._norms.values()))) if self._norms else None

    def register_comm_hook(self, state: Any, hook: CommHook) -> None:
        """Replaces the method of DDP with the same arguments; call it before the first backward."""
        give_hook(self._ddp, state, hook)


class HookNorms(LocalNorms):
    """By one post-accumulate-grad hook a parameter."""

    def __init__(self, parameters: Sequence[Tensor], ddp: DistributedDataParallel | None) -> None:
        super().__init__(ddp)
        self._hooked: dict[int, Tensor] = {}
        self.follow(parameters)

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Hooks are added to those that have none."""
        for parameter in parameters:
            if id(parameter) not in self._hooked and parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._measure)
                self._hooked[id(parameter)] = parameter

    def _measure(self, parameter: Tensor) -> None:
        if self._armed and (gradient := parameter.grad) is not None:
            dense = gradient.coalesce() if gradient.is_sparse else gradient
            self._norms[id(parameter)] = norm(elements(dense))


class CommNorms(LocalNorms):
    """By DDP's communication hook; keyed by parameter, because DDP rebuilds its buckets after one step."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        super().__init__(ddp)
        self._inner: tuple[CommHook, Any] = (allreduce_hook, ddp.process_group)
        ddp.register_comm_hook(self, self._make_hook())

    def register_comm_hook(self, state: Any, hook: CommHook) -> None:
        """The hook is called with each bucket after its norms were taken."""
        if "bucket" not in inspect.signature(hook).parameters:
            raise GuardError("a communication hook takes (state, bucket): name its second argument bucket")
        self._inner = (hook, state)

    @property
    def user_state(self) -> Any:
        """The state of the user's own hook."""
        return self._inner[1]

    def _make_hook(self) -> CommHook:
        """DDP asks for the argument name ``bucket`` and takes no annotation that is a string."""

        def hook(_, bucket):  # type: ignore[no-untyped-def]
            if self._armed:
                self._measure(bucket)
            inner, state = self._inner
            # All-reduce of one bucket, or the user's own hook. DDP calls it on every rank, in the same order
            # of buckets, and waits for the returned future at the end of backward.
            return inner(state, bucket)

        return hook

    @torch.no_grad()  # autograd's own thread calls it with gradients enabled
    def _measure(self, bucket: Any) -> None:
        buffer = bucket.buffer()  # a sparse gradient has a bucket of its own, which lists no gradients
        found = [buffer.coalesce()] if buffer.is_sparse else bucket.gradients()
        gradients = [elements(gradient) for gradient in found]
        parameters = bucket.parameters()
        if all(gradient.dtype in (torch.float32, torch.float64) for gradient in gradients):
            norms = torch._foreach_norm(gradients)
        else:
            norms = tuple(norm(gradient) for gradient in gradients)
        self._norms.update({id(p): n.float() for p, n in zip(parameters, norms, strict=True)})


def local_norms(parameters: Sequence[Tensor], model: nn.Module, by: By = "auto") -> LocalNorms:
    """Takes local norms by communication hook (``comm``) or by one hook a parameter (``hooks``).

    ``auto`` is ``comm`` for a DDP model on an accelerator that has no communication hook yet, else ``hooks``.

    Args:
        parameters: the parameters to watch.
        model: as the user has it; inside ``torch.compile`` its DDP wrapper is found.

    Raises:
        GuardError: ``comm`` was asked for and there is no DDP wrapper, or it has a hook already.
    """
    ddp = find_ddp(model)
    if by == "comm" and ddp is None:
        raise GuardError(
            "local_norm_by is comm, and the model is not in DistributedDataParallel: "
            "wrap it, or set local_norm_by to auto"
        )
    if by == "comm" and _has_hook(ddp):
        raise GuardError(
            "local_norm_by is comm, and the model has a communication hook already, and DDP takes only one: "
            "pass it to guard.register_comm_hook instead of the model's, or set local_norm_by to hooks"
        )
    on_device = any(parameter.device.type != "cpu" for parameter in parameters)
    if ddp is not None and (by == "comm" or (by == "auto" and on_device and not _has_hook(ddp))):
        return CommNorms(ddp)
    return HookNorms(parameters, ddp)


def find_ddp(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP wrapper in ``model``, if there is one."""
    inner: Any = model
    while isinstance(inner, nn.Module):
        if isinstance(inner, DistributedDataParallel):
            return inner
        inner = getattr(inner, "_orig_mod", None)
    return None


def give_hook(ddp: DistributedDataParallel | None, state: Any, hook: CommHook) -> None:
    """Registers the user's hook on DDP itself, where the guard does not need the slot."""
    if ddp is None:
        raise GuardError("a communication hook needs a model in DistributedDataParallel: wrap the model")
    ddp.register_comm_hook(state, hook)


def comm_states(ddp: DistributedDataParallel | None) -> list[Any]:
    """The states of the user's communication hooks."""
    states = [state for _, state in getattr(ddp, "_comm_hooks", ())]
    return [state.user_state if isinstance(state, CommNorms) else state for state in states]


def refuse_join(ddp: DistributedDataParallel | None) -> None:
    """Raises GuardError within ``model.join()``: a rank that has no data left takes no guarded steps."""
    join = getattr(ddp, "_join_config", None)
    if join is not None and join.enable and not join.throw_on_early_termination:
        raise GuardError(
            "the guard needs every rank at every step, but in model.join() a rank stops when its data ends: "
            "give all ranks as many batches (DistributedSampler does), or use "
            "join(throw_on_early_termination=True)"
        )


def _has_hook(ddp: DistributedDataParallel | None) -> bool:
    return bool(getattr(ddp, "_comm_hooks", ()))
