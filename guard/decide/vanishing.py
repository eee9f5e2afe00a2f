"""Does the gradient still reach all layers? Counts zeros, and compares the first layers with the last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from guard.config import GuardConfig
from guard.observe.watched import remapped
from guard.types import Floats

VANISHED = 1e-5
"""Gradient of the first third of the layers over that of the last third, per element: less has vanished.

A tenth of the pre-flight's limit: here the size of the weights, which differs by layer, does not count."""
_DEEP = 6
"""With fewer matrices a third is a single one, whose gradient shows little about depth."""
_EVERY = 10
"""Steps between two checks: a gradient vanishes over hundreds of steps, and the check costs microseconds."""


class VanishingByDepth:
    """Reports once that the gradient of the first layers has vanished, when that has lasted.

    A layer's gradient is the root mean square over its elements, so that its size does not count; of a group
    of layers the largest counts, and one whose gradient is exactly zero does not take part: it is frozen, or
    dead, which is reported separately. Norms and biases do not count either: where a normalization follows,
    the gradient of a bias is rounding noise.

    Args:
        parameters: in the order of the network.
        lasting_steps: how long it must have lasted.
    """

    def __init__(self, parameters: Sequence[Tensor], lasting_steps: int) -> None:
        self._matrices = np.array([i for i, p in enumerate(parameters) if p.ndim >= 2], dtype=np.int64)
        sizes = [parameters[i].numel() for i in self._matrices]
        self._scales = np.array([1 / math.sqrt(size) if size else 0.0 for size in sizes])
        self._third = len(sizes) // 3 if len(sizes) >= _DEEP else 0
        self._lasting = max(1, lasting_steps // _EVERY)
        self.rows = 0
        """Checks in a row that found it vanished."""

    def observe(self, attempt: int, norms: Floats) -> tuple[int, float] | None:
        """The parameter at which the gradient has vanished on its way back, and early over late gradient."""
        if not self._third or attempt % _EVERY:
            return None
        sizes = norms[self._matrices] * self._scales
        late = sizes[-self._third :].max()
        early = sizes[: self._third].max()
        if not (0.0 < early < VANISHED * late < math.inf):  # NaN too
            self.rows = 0
            return None
        self.rows += 1
        if self.rows != self._lasting:
            return None
        vanished = np.flatnonzero((sizes > 0.0) & (sizes < VANISHED * late))
        return int(self._matrices[vanished[-1]]), float(early / late)


class Lost(NamedTuple):
    """Where the gradient is lost: in words, how far in standard deviations, the index of the first layer."""

    reason: str
    score: float
    layer: int


class LostGradients:
    """Reports once the layers that gradients no longer reach: those that are exactly zero, or the first ones.

    Args:
        names: of the parameters.
        parameters: in the order of the network.
    """

    def __init__(self, config: GuardConfig, names: list[str], parameters: Sequence[Tensor]) -> None:
        self._config, self._names, self._parameters = config, names, parameters
        self._idle = np.zeros(len(names), dtype=np.int64)
        """Steps in a row in which each parameter's gradient was exactly zero."""
        self._any_idle = True
        self._by_depth = VanishingByDepth(parameters, config.dead_steps)

    def follow(self, names: list[str], parameters: Sequence[Tensor], origins: Sequence[int]) -> None:
        """The optimizer steps these parameters from now on; ``origins``: the former index of each, or -1."""
        self._names, self._parameters = names, parameters
        self._idle = remapped(self._idle, origins)
        self._by_depth = VanishingByDepth(parameters, self._config.dead_steps)

    def observe(self, attempt: int, norms: Floats) -> Lost | None:
        """One attempt, with the norm of each parameter's gradient."""
        dead, vanished = self._dead(norms), self._by_depth.observe(attempt, norms)
        if dead:
            layers = ", ".join(self._names[i] for i in dead[:3]) + (", ..." if len(dead) > 3 else "")
            return Lost(
                f"no gradient in {self._config.dead_steps} steps: {layers}", float(len(dead)), dead[0]
            )
        if vanished is None:
            return None
        layer, ratio = vanished
        reason = (
            f"the gradient vanishes on its way back: from {self._names[layer]} on, {ratio:.1g} of it remains"
        )
        return Lost(reason, self._config.detect.sigmas * math.log(ratio) / math.log(VANISHED), layer)

    def _dead(self, norms: Floats) -> list[int]:
        """Layers with a gradient of exactly zero in ``dead_steps`` steps in a row, as of this step."""
        if norms.all():  # what is not finite counts as a gradient
            if self._any_idle:
                self._idle.fill(0)
                self._any_idle = False
            return []
        self._any_idle = True
        self._idle = np.where(norms == 0.0, self._idle + 1, 0)
        due = np.flatnonzero(self._idle == self._config.dead_steps).tolist()
        return [i for i in due if self._parameters[i].grad is not None]

    def state_dict(self) -> dict[str, Any]:
        return {"idle": self._idle.tolist(), "faded": self._by_depth.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["idle"]) == len(self._names):
            self._idle = np.asarray(state["idle"], dtype=np.int64)
        self._by_depth.rows = int(state.get("faded", 0))
