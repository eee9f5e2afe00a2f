"""Whether a checkpoint's weights are those of the model that is to continue from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from guard.act.snapshot import Stateful

_NAMED = 3


class OtherModel(Exception):
    """The code of the model has changed since the checkpoint; the text says how."""


def check_model(saved: Mapping[str, Any], model: Stateful) -> None:
    """Compares names and shapes.

    Raises:
        OtherModel: they differ.
    """
    now = {name: tuple(value.shape) for name, value in model.state_dict().items() if _is_tensor(value)}
    then = {name: tuple(value.shape) for name, value in saved.items() if _is_tensor(value)}
    resized = [n for n in now if n in then and now[n] != then[n]]
    parts = [
        f"{_names([n for n in now if n not in then])} is not in the checkpoint" if now.keys() - then else "",
        f"{_names([n for n in then if n not in now])} is not in the model" if then.keys() - now else "",
        f"{resized[0]} was {list(then[resized[0]])} and is {list(now[resized[0]])}" if resized else "",
    ]
    if any(parts):
        raise OtherModel(", ".join(filter(None, parts)))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
