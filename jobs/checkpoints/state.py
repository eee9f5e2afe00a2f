"""Takes state dicts apart into tensors and JSON, and puts them together again. Nothing is ever executed.

Tensors go to safetensors files; all else becomes JSON, in which a one-letter key is the type of a value:
``t`` tensor, ``a`` NumPy array, ``d`` dict, ``l`` list, ``u`` tuple, ``f`` a float that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.checkpoints.errors import DamagedCheckpoint, UnsupportedState

Tensors = dict[str, Tensor]


def take_apart(value: Any, name: str, tensors: Tensors) -> Any:
    """Puts the tensors within ``value`` into ``tensors`` and returns the rest as JSON.

    Args:
        value: a state dict, or anything within one.
        name: its path, with dots; tensors are named after it.
        tensors: they are added here, not copied.

    Raises:
        UnsupportedState: it holds an object that is neither tensor, array, container nor plain value.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Tensor):
        return {"t": _put(tensors, name, value.detach())}
    if isinstance(value, np.ndarray):
        return {"a": _put(tensors, name, torch.from_numpy(value.copy()))}
    if isinstance(value, np.generic):
        return take_apart(value.item(), name, tensors)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"f": repr(value)}
    if isinstance(value, Mapping):
        return {"d": [[_key(k, name), take_apart(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [take_apart(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return {"l" if isinstance(value, list) else "u": items}
    raise UnsupportedState(
        f"{name} is a {type(value).__name__}; a checkpoint holds tensors, arrays, numbers, text, lists, dicts"
    )


def put_together(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``take_apart``.

    Raises:
        DamagedCheckpoint: the JSON is of another form, or a tensor is missing.
    """
    if not isinstance(tree, dict):
        return tree
    try:
        ((kind, content),) = tree.items()
        return _READERS[kind](content, tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedCheckpoint(f"state.json and the tensors do not match ({error})") from None


def _put(tensors: Tensors, name: str, tensor: Tensor) -> str:
    while name in tensors:  # {"a.b": x} beside {"a": {"b": y}}
        name += "~"
    tensors[name] = tensor
    return name


def _key(key: Any, name: str) -> str | int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise UnsupportedState(f"{name} has the key {key!r}: use text or integers")
    return key


_READERS: dict[str, Any] = {
    "t": lambda content, tensors: tensors[content],
    "a": lambda content, tensors: tensors[content].numpy(),
    "f": lambda content, _: float(content),
    "d": lambda content, tensors: {key: put_together(value, tensors) for key, value in content},
    "l": lambda content, tensors: [put_together(item, tensors) for item in content],
    "u": lambda content, tensors: tuple(put_together(item, tensors) for item in content),
}
