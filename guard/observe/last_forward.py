"""The last forward of a model, kept to be computed again where the loop gives no closure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from guard.observe.watched import unwrap


class LastForward:
    """The last forward of a training model on its own inputs, to be computed again before the next one.

    Where the loop calls the children of the model instead (Lightning), it is the last of each of them.
    What is compiled in place (``module.compile()``) is not kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls: dict[nn.Module, tuple[Any, Mapping[str, Any], AbstractContextManager[Any]]] = {}
        for module in (model, *(model.children() if unwrap(model) is model else ())):
            module.register_forward_pre_hook(_InputsHook(self._keep), with_kwargs=True)

    def _keep(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if torch.compiler.is_compiling() or not module.training or not torch.is_grad_enabled():
            return
        if module is self._model:
            self._calls.clear()
        elif self._model in self._calls:  # it is called inside
            return
        device = next(self._model.parameters()).device.type
        casts, kind = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._calls[module] = args, kwargs, torch.autocast(device, kind, enabled=casts)

    def __bool__(self) -> bool:
        return bool(self._calls)

    def forget(self) -> None:
        """Its inputs are of no use any more."""
        self._calls.clear()

    def again(self) -> float:
        """Computes it. There is no loss: 0."""
        for module, (args, kwargs, context) in self._calls.items():
            with context:
                module(*args, **kwargs)
        return 0.0


class _InputsHook:
    """Calls ``run(module, args, kwargs)`` before a forward; a copy does nothing, as of ``ForwardHook``."""

    def __init__(self, run: Callable[[nn.Module, Any, Mapping[str, Any]], None]) -> None:
        self._run = run

    def __call__(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._run(module, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")
