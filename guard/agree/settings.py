"""What every rank must have alike: the configuration, the parameters, the optimizer and the version."""

from __future__ import annotations

import importlib.metadata
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from guard.config import GuardConfig

Settings = Mapping[str, str]


class RankSettings:
    """The settings of this rank, as text by name; read once, when the first step asks for them."""

    def __init__(
        self,
        config: GuardConfig,
        optimizer: Optimizer,
        named: Callable[[], Mapping[str, Tensor]],
        divided: Callable[[str], bool] = lambda _: False,
    ):
        self._config, self._optimizer, self._named, self._divided = config, optimizer, named, divided
        self._known: Settings | None = None
        self._digest = 0

    def known(self) -> Settings:
        if self._known is None:
            self._known = {
                "gradguard": _version(),
                **_flat(self._config.model_dump()),
                **_optimizer_settings(self._optimizer),
                **{
                    f"parameter {name}": "this rank's part" if self._divided(name) else _shape(p)
                    for name, p in self._named().items()
                    if p.requires_grad
                },
            }
            self._digest = digest(sorted(self._known.items()))
        return self._known

    def digest(self) -> int:
        """24 bits: equal on ranks with the same settings."""
        self.known()
        return self._digest


def digest(*parts: object) -> int:
    """24 bits that a float32 holds exactly; equal on two ranks when ``parts`` print alike."""
    return zlib.crc32(repr(parts).encode()) & 0xFFFFFF


def _version() -> str:
    try:
        return importlib.metadata.version("gradguard")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _flat(values: Mapping[str, Any], path: str = "") -> Settings:
    found: dict[str, str] = {}
    for name, value in values.items():
        found |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": repr(value)}
    return found


def _optimizer_settings(optimizer: Optimizer) -> Settings:
    found = {"optimizer": type(optimizer).__name__}
    for i, group in enumerate(optimizer.param_groups):
        plain = {k: v for k, v in group.items() if isinstance(v, bool | int | float | str | tuple)}
        found |= {f"optimizer group {i}.{name}": repr(value) for name, value in plain.items()}
    return found


def _shape(parameter: Tensor) -> str:
    return (
        f"{'x'.join(map(str, parameter.shape)) or 'a number'} {str(parameter.dtype).removeprefix('torch.')}"
    )
