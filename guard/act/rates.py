"""The learning rate of an update, as the optimizer used it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from guard.observe.own_rate import declared_rate
from guard.observe.shards import version
from guard.types import Floats


class UsedRate:
    """Reads the rate of the first parameter group after everything that changes it for one step.

    A rate in a tensor on a device is read there only where nobody wrote what it is to ``learn``.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._known: tuple[Tensor, int, float] | None = None
        """A tensor, its version, and what was in it."""
        self.last: float | None = None
        """Of the last update; None before the first."""
        self.used: list[Tensor] = []
        """What it was on the device, where the last update was not to wait for that."""
        self._handle: Any = None
        self.expects, self._later = False, False
        """Whether the next step is the guard's."""
        self._counts: tuple[int, ...] = ()
        self._sizes: list[float] = []
        """Elements of each group, of so many parameters each."""

    @property
    def declared(self) -> float:
        """``lr`` of the first group; NaN where it has none, as Adafactor with a relative step."""
        return declared_rate(self._optimizer, self._number)

    def overall(self, first: float) -> float:
        """The rates of all groups as one, the root of their mean square over all elements.

        Args:
            first: the rate of the first group in this step, which the others are to it as declared.
        """
        groups = self._optimizer.param_groups
        rates: list[Any] = [group.get("lr") for group in groups]
        if not all(isinstance(rate, (int, float)) for rate in rates) or rates.count(rates[0]) == len(rates):
            return first
        counts = tuple(len(group["params"]) for group in groups)
        if counts != self._counts:
            sizes = [float(sum(p.numel() for p in group["params"])) for group in groups]
            self._counts, self._sizes = counts, sizes
        squares = math.fsum(size * rate * rate for size, rate in zip(self._sizes, rates, strict=True))
        scale = first / rates[0] if rates[0] else 1.0
        return scale * math.sqrt(squares / sum(self._sizes))

    def on_device(self) -> list[Tensor]:
        """The rate, where it is a tensor on a device: to be read with others and passed to ``learn``."""
        rate = self._optimizer.param_groups[0].get("lr")
        return [rate.detach()] if isinstance(rate, Tensor) and not rate.is_cpu else []

    def learn(self, values: Sequence[Floats]) -> None:
        """What ``on_device`` held, now on the host; nothing is known any more where it was not read."""
        rate: Any = self._optimizer.param_groups[0].get("lr")
        self._known = (rate, version(rate), float(values[0][0])) if len(values) else None

    def _number(self, rate: Any) -> float:
        if not isinstance(rate, Tensor) or rate.is_cpu:
            return float(rate)
        if self._known is None or self._known[0] is not rate or self._known[1] != version(rate):
            self._known = rate, version(rate), float(rate)
        return self._known[2]

    def expect_step(self, *, later: bool = False) -> None:
        """Before one ``optimizer.step()``, whose rate is noted by a hook that runs after all others.

        Args:
            later: where the rate is a tensor on a device, ``used`` is a copy of it, and ``last`` is not set.
        """
        self.used, self.expects, self._later = [], True, later
        hooks = None if self._handle is None else self._handle.hooks_dict_ref()
        if hooks is None or self._handle.id not in hooks:
            self._handle = self._optimizer.register_step_pre_hook(_Hook(self))
            hooks = self._handle.hooks_dict_ref()
            for key, hook in list(hooks.items())[:-1]:
                if isinstance(hook, _Hook):
                    del hooks[key]
        elif next(reversed(hooks)) != self._handle.id:
            hooks.move_to_end(self._handle.id)

    def note(self) -> None:
        """The optimizer is about to step, by whomever."""
        if not self.expects:
            return
        if self._later and (rate := self.on_device()):
            self.used = [rate[0].clone()]
        else:
            self.last = self._number(self._optimizer.param_groups[0]["lr"])


class _Hook:
    """The optimizer's pre-step hook, one for all guards that it has had; it keeps none of them alive."""

    def __init__(self, rate: UsedRate) -> None:
        self._rate = weakref.ref(rate)

    def __call__(self, *_: Any) -> None:
        if (rate := self._rate()) is not None:
            rate.note()
