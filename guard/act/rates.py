"""The learning rate of an update, as the optimizer used it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer


class UsedRate:
    """Reads the rate of the first parameter group after everything that changes it for one step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.last: float | None = None
        """Of the last update; None before the first."""

    @contextmanager
    def read(self) -> Iterator[None]:
        """Around one ``optimizer.step()``: registered last, the hook runs after all others."""

        def note(optimizer: Optimizer, *_: Any) -> None:
            self.last = float(optimizer.param_groups[0]["lr"])

        handle = self._optimizer.register_step_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()
