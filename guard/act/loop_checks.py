"""Mistakes in the loop around the guard, found where they are made and answered by what to write instead."""

from __future__ import annotations

import gc
import inspect
import math
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from guard.act.other_optimizers import GuardedStep, watch_others
from guard.errors import GuardError
from guard.observe.shards import local, version

_OWN = str(Path(__file__).resolve().parents[1])
_FIRST_STEPS = 2
"""The steps in which losses are looked at: a line that is wrong is wrong from the first step on."""
_CAUSES = "zero_grad between backward and step, a loss that was detached, layers that are frozen?"


def warn(message: str) -> None:
    """A mistake that the run survives, shown at the user's own line."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def checked_loss(loss: Any) -> Tensor:
    """The loss, if it is a tensor with one element.

    Raises:
        GuardError: it is something else.
    """
    if not isinstance(loss, Tensor):
        kind = type(loss).__name__
        hint = "loss.loss, or what the model's output calls it" if hasattr(loss, "loss") else "a 0-dim tensor"
        raise GuardError(f"the loss is a {kind}, not a tensor: pass {hint}")
    if loss.numel() != 1 or loss.is_complex():
        shape, dtype = tuple(loss.shape), loss.dtype
        raise GuardError(
            f"the loss has shape {shape} and dtype {dtype}: reduce it to one number, loss.mean()"
        )
    return loss


def checked_weight(weight: Any) -> Any:
    """The weight of a micro-batch, if it is a finite number.

    Raises:
        GuardError: it is something else.
    """
    if isinstance(weight, Tensor) or (isinstance(weight, Real) and math.isfinite(weight)):
        return weight
    raise GuardError(f"weight is {weight!r}: pass 1 / k for each of k micro-batches")


def check_closure(optimizer: Optimizer, error: Exception) -> None:
    """Raises GuardError where a step of the optimizer failed for want of a closure."""
    said = f"{type(error).__name__} {error}"
    if "closure" in said.lower() or "'NoneType' object is not callable" in said:
        raise GuardError(
            f"{type(optimizer).__name__}.step needs a closure, which the guard does not pass on ({error}): "
            "choose an optimizer whose step takes no closure"
        ) from error


class LoopChecks:
    """What the loop does between the calls of the guard.

    Args:
        parameters: those that the optimizer steps, a list that follows it.
        scaler: the guard's own, if it was given one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        scaler: GradScaler | None,
        *,
        active: bool = True,
    ) -> None:
        self.parameters = parameters
        self._scaler = scaler
        self._had_gradient = False
        self.inside = False
        """Whether the guard is stepping the optimizer."""
        self._warned: set[str] = set()
        self.pending = False
        """Whether a loss was noted that ``guard.step`` has not used."""
        self.notes = 0
        self.replaced = False
        """Whether a newer guard steps the optimizer."""
        self._steps = 0
        self._divisors: list[float | None] = []
        self._before_closure: list[tuple[Tensor | None, int]] = []
        self._used: tuple[Tensor, Any, int] | None = None
        """A parameter, a weak reference to its gradient as of the last step, and the gradient's version."""
        self._active = active
        if active:
            _register(optimizer, _StepHook(self))
            watch_others(self)

    def on_optimizer_step(self) -> None:
        """The optimizer steps, by whomever.

        Raises:
            GuardError: not by the guard, with gradients that are the guard's to use.
        """
        if self.inside:
            return
        if self.pending or self._unchanged():
            raise GuardError(
                "optimizer.step() was called beside guard.step(), which steps the optimizer: remove it, and "
                "with a GradScaler scaler.step() and scaler.update() too"
            )
        if self._steps:
            self._warn("optimizer.step() was called outside of guard.step(): that step is not guarded")

    def on_other_step(self, optimizer: Optimizer, *, own_gradients: bool) -> None:
        """Another optimizer, which no guard steps, steps some of the parameters.

        Raises:
            GuardError: with gradients that are the guard's to use.
        """
        named = f"{type(optimizer).__name__}.step() of an optimizer that has no guard"
        if not own_gradients and (self.pending or self._unchanged()):
            raise GuardError(
                f"{named} was called beside this guard, on parameters that it watches: for a new optimizer "
                "make a new guard, GradientGuard(model, optimizer), and call only its guard.step()"
            )
        if self._steps:
            self._warn(f"{named} changed parameters that a guard watches: that step is not guarded")

    def before_backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """Looks at the loss, which backward multiplies with ``weight``, and at what the step before has left.

        Raises:
            GuardError: the gradients of the step before are still there, or the loss is scaled by hand.
        """
        if not self._active:
            return
        if not loss.requires_grad:
            raise GuardError("the loss requires no gradient: was it detached, or computed under no_grad?")
        if not self.pending and self._unchanged():
            raise GuardError(
                "the gradients of the step before are still there: call optimizer.zero_grad() before "
                "guard.backward. For gradient accumulation call guard.backward(loss, weight=1 / k) for each "
                "of k micro-batches, then guard.step() and optimizer.zero_grad() once"
            )
        if self._steps < _FIRST_STEPS:
            if not self._steps and not self.pending:
                self._check_scale(loss)
            self._divisors.append(_divisor(loss) if weight == 1.0 else None)

    def noted(self) -> None:
        """A loss was noted: ``guard.step`` must come next, or another micro-batch.

        Raises:
            GuardError: another guard was made for the optimizer since.
        """
        if self.replaced:
            raise GuardError(
                "another guard was made for this optimizer since: use that one, or make only one"
            )
        self.pending, self._used = True, None
        self.notes += 1

    def begin_closure(self) -> int:
        """A closure starts: how many losses were noted before it."""
        gradients = [parameter.grad for parameter in self.parameters]
        self._before_closure = [(g, 0 if g is None else version(g)) for g in gradients]
        return self.notes

    def closure_ran_backward(self) -> bool:
        """Whether gradients have changed since ``begin_closure``."""
        before, self._before_closure = self._before_closure, []
        pairs = zip(self.parameters, before, strict=True)
        now = [(p.grad, g, seen) for p, (g, seen) in pairs if p.grad is not None]
        return any((g is not old or version(g) != seen) and _nonzero(g) for g, old, seen in now)

    def after_step(self) -> None:
        """The gradients have been used, whatever became of them."""
        self.pending = False
        self._steps += 1
        self._used = None
        for parameter in self.parameters:
            if (gradient := parameter.grad) is not None:
                self._used = parameter, weakref.ref(gradient), version(gradient)
                break
        if self._divisors:
            self._check_divisors()

    def forget(self) -> None:
        """State was loaded: what was seen before says nothing."""
        self.pending, self._used = False, None

    def gradients_seen(self, present: bool) -> None:
        """Raises GuardError where the first step has no gradient at all; warns where a later one has none."""
        if not present and not self._had_gradient and self._active:
            raise GuardError(f"no parameter of the optimizer has a gradient: {_CAUSES}")
        if not present:
            self._warn(f"a step had no gradient at all, and changed nothing: {_CAUSES}")
        self._had_gradient = True

    def _warn(self, message: str) -> None:
        """Once each."""
        if self._active and message not in self._warned:
            self._warned.add(message)
            warn(message)

    def _unchanged(self) -> bool:
        """Whether a gradient is as the last step left it, and not zero."""
        if self._used is None:
            return False
        parameter, used, seen = self._used
        gradient = parameter.grad
        if gradient is None or gradient is not used() or version(gradient) != seen:
            return False
        return _nonzero(gradient) and any(parameter is p for p in self.parameters)

    def _check_scale(self, loss: Tensor) -> None:
        factors = [f for f in _factors(loss) if isinstance(f, Tensor) and f.dtype is torch.float32]
        if self._scaler is not None and (scale := getattr(self._scaler, "_scale", None)) is not None:
            if any(factor.data_ptr() == scale.data_ptr() for factor in factors):
                raise GuardError(
                    "the loss is scaled already, and the guard's scaler scales it again: write "
                    "guard.backward(loss), without scaler.scale"
                )
        elif any(isinstance(owner, GradScaler) for f in factors for owner in gc.get_referrers(f)):
            raise GuardError(
                "the loss is scaled by a GradScaler that the guard does not have: pass scaler=scaler, write "
                "guard.backward(loss) without scaler.scale"
            )

    def _check_divisors(self) -> None:
        divisors, self._divisors = self._divisors, []
        k = len(divisors)
        if k > 1 and all(d is not None and math.isclose(d, k) for d in divisors):
            self._warn(
                f"each of {k} losses was divided by {k} before guard.backward, so the reported loss is too: "
                f"for gradient accumulation write guard.backward(loss, weight=1 / {k})"
            )


def _nonzero(gradient: Tensor) -> bool:
    """Whether any element is not zero, NaN included."""
    part = local(gradient.detach())
    return bool((part._values() if part.is_sparse else part).any())


class _StepHook(GuardedStep):
    """The optimizer's pre-step hook; it keeps neither the checks nor the guard alive."""

    def __init__(self, checks: LoopChecks) -> None:
        self._checks = weakref.ref(checks)

    def replace(self) -> None:
        if (checks := self._checks()) is not None:
            checks.replaced = True

    def __call__(self, *_: Any) -> None:
        if (checks := self._checks()) is not None:
            checks.on_optimizer_step()


def _register(optimizer: Any, hook: _StepHook) -> None:
    """On the optimizer inside a wrapper. A newer guard's takes the place of an older one's."""
    while "_optimizer_step_pre_hooks" not in vars(optimizer):
        optimizer = getattr(optimizer, "optimizer", None)
        if optimizer is None:
            return
    hooks = optimizer._optimizer_step_pre_hooks
    for key in [key for key, other in hooks.items() if isinstance(other, _StepHook)]:
        hooks.pop(key).replace()
    optimizer.register_step_pre_hook(hook)


def _factors(loss: Tensor, depth: int = 4) -> Iterator[Any]:
    """What the loss was multiplied with last, as autograd has saved it for backward."""
    node: Any = loss.grad_fn
    for _ in range(depth):
        if node is None or not node.name().startswith(("MulBackward", "DivBackward")):
            return
        yield from (getattr(node, saved, None) for saved in ("_saved_self", "_saved_other"))
        node = node.next_functions[0][0]


def _divisor(loss: Tensor) -> float | None:
    """What the loss was divided by, a number of Python's; None where it was not.

    Autograd saves that number as a tensor; what it saves as a number is of a mean inside a loss of torch's.
    """
    node: Any = loss.grad_fn
    kind = "" if node is None else node.name()
    factor = getattr(node, "_saved_other", None) if kind.startswith(("MulBackward", "DivBackward")) else None
    if (
        not isinstance(factor, Tensor)
        or factor.ndim
        or not factor.is_cpu
        or not 0.0 < float(factor) < math.inf
    ):
        return None
    return float(factor) if kind.startswith("Div") else 1.0 / float(factor)


class ScheduleCheck:
    """Whether only the guard steps the scheduler that it was given, and knows the one that there is.

    Args:
        states: what else a rollback restores.
    """

    def __init__(self, scheduler: Any, optimizer: Optimizer, states: Mapping[str, Any]) -> None:
        self._scheduler = scheduler
        self._optimizer = optimizer
        self._knows = scheduler is not None or bool(states)
        self._position = self._now()

    def _now(self) -> tuple[Any, Any]:
        return getattr(self._scheduler, "last_epoch", None), getattr(self._scheduler, "_step_count", None)

    def accept(self) -> None:
        """The guard moved the schedule, or loaded it."""
        self._position = self._now()

    def check(self) -> None:
        """Raises GuardError where the loop stepped the scheduler since ``accept``.

        Only for exactly one step: a schedule that was loaded is elsewhere altogether.
        """
        if self._scheduler is None:
            self._check_unknown()
            return
        before, now = self._position, self._now()
        if before == now:
            return
        self._position = now
        steps = [b - a for a, b in zip(before, now, strict=True) if isinstance(a, int) and isinstance(b, int)]
        if steps and all(step == 1 for step in steps):
            raise GuardError(
                "scheduler.step() was called beside guard.step(), which steps the scheduler: remove it, or "
                "step it yourself (once an epoch) and pass it as "
                'state={"scheduler": scheduler}, not scheduler='
            )

    def _check_unknown(self) -> None:
        if not self._knows and hasattr(self._optimizer.step, "_wrapped_by_lr_sched"):
            self._knows = True
            warn(
                "the optimizer has a scheduler that the guard does not know, so no rollback can restore it: "
                "pass scheduler=scheduler (the guard steps it after each step) or, if you step it yourself, "
                'once an epoch, state={"scheduler": scheduler}'
            )
