"""A hook on the user's model that a copy or a pickle of the model leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class ForwardHook:
    """Calls ``run(model)`` before each forward of the model that it is registered on.

    A copy of the model, or one that is saved whole, has a builtin without effect in its place: neither holds
    the guard, and the file is read where the guard is not installed.
    """

    def __init__(self, run: Callable[[nn.Module], None]) -> None:
        self._run = run

    def __call__(self, module: nn.Module, *_: Any) -> None:
        self._run(module)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, ({}, "get")  # {}.get(module, inputs) is inputs: the forward gets what it was given
