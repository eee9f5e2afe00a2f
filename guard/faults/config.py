"""One fault to inject, as written in a spec; ``injector.py`` causes it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from guard.config import Config

Kind = Literal[
    "poisoned_batch",
    "label_noise",
    "nan_loss",
    "infinite_activation",
    "scaled_gradient",
    "lr_spike",
    "lr_drift",
    "poisoned_buffers",
    "bitflip_weight",
    "bitflip_gradient",
    "bitflip_moment",
]


class FaultConfig(Config):
    """One fault: what, when, where, how often."""

    kind: Kind
    """What breaks."""

    step: int = Field(ge=0)
    """The optimizer step from which it fires (the number of steps applied before it)."""

    rank: int | None = Field(default=None, ge=0)
    """The rank that breaks; unset: every rank."""

    times: PositiveInt = 1
    """On how many attempts it fires."""

    factor: float = 1e4
    """What a poisoned batch, a scaled gradient, a buffer or the learning rate is multiplied by; for a drift,
    what each attempt multiplies the rate by again."""

    parameter: str = "*"
    """Name pattern of the parameters whose gradient is scaled, or of the buffers that are poisoned. A bit
    flips in the largest match; the layer of the largest match gives infinite output."""

    bit: int = Field(default=30, ge=0, le=62)
    """Which bit flips; 30 is the top exponent bit of a float32."""

    index: int = Field(default=0, ge=0)
    """Which element of the flattened parameter flips."""
