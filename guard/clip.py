"""Clipping by the global gradient norm: a fixed limit, or a robust multiple of the recent accepted norm.

Source of the fixed form: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural
networks" (2013), section 3.2. The coefficient is torch's: ``min(1, limit / (norm + 1e-6))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from guard.base import Config

EPSILON = 1e-6


class ClipConfig(Config):
    """How gradients are clipped."""

    kind: Literal["auto", "norm", "off"] = "auto"
    """``auto``: a multiple of the recent accepted norm; ``norm``: the fixed ``max_norm``; ``off``: never."""

    max_norm: float | None = Field(default=None, gt=0)
    """The fixed limit of the global L2 norm. Giving it alone selects ``kind: norm``."""

    factor: float = Field(default=3.0, gt=1)
    """``auto`` clips to this multiple of the median accepted norm."""

    suspect_factor: float = Field(default=2.0, ge=1)
    """A suspect step that is applied is clipped to this multiple of the median accepted norm."""

    @model_validator(mode="before")
    @classmethod
    def _limit_selects_norm(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("max_norm") is not None:
            return {"kind": "norm", **values}
        return values

    @model_validator(mode="after")
    def _norm_needs_limit(self) -> ClipConfig:
        if self.kind == "norm" and self.max_norm is None:
            raise ValueError("kind is norm but max_norm is not set: set max_norm, for example 1.0")
        return self


class Clipper:
    """Turns a gradient norm into a limit and a coefficient."""

    def __init__(self, config: ClipConfig) -> None:
        self.config = config

    def limit(self, typical: float | None, *, suspect: bool) -> float | None:
        """The norm above which this step is clipped, or None.

        Args:
            typical: median of the accepted global norms, None while there are too few.
            suspect: whether the step is suspect, and so held closer to the recent norm.
        """
        config = self.config
        limits = []
        if config.kind == "norm" and config.max_norm is not None:
            limits.append(config.max_norm)
        if typical is not None and typical > 0:
            if config.kind == "auto":
                limits.append(config.factor * typical)
            if suspect:
                limits.append(config.suspect_factor * typical)
        return min(limits) if limits else None

    @staticmethod
    def coefficient(norm: float, limit: float | None) -> float:
        """What the gradients are multiplied with; exactly 1.0 when nothing is clipped."""
        if limit is None or not math.isfinite(norm):
            return 1.0
        return min(1.0, limit / (norm + EPSILON))


def scale_(gradients: Sequence[Tensor], coefficient: float) -> None:
    """Multiplies the gradients in place; touches nothing when the coefficient is 1."""
    if coefficient != 1.0:
        torch._foreach_mul_(list(gradients), coefficient)
