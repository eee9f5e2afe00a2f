"""The section ``model.init`` of a spec: the initial weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from guard.config import Config

Scheme = Literal["default", "kaiming", "xavier", "orthogonal", "truncated_normal", "lsuv"]
LayerScheme = Literal["default", "kaiming", "xavier", "orthogonal", "truncated_normal"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


_Name = TypeVar("_Name")
_Section = TypeVar("_Section")


def _form(value: Any) -> str:
    return "section" if isinstance(value, dict | Config) else "name"


NameOrSection = Annotated[
    Annotated[_Name, Tag("name")] | Annotated[_Section, Tag("section")], Discriminator(_form)
]
"""A section that has a short form, a name, beside its long form."""


class LayerInit(Config):
    """A different scheme for the layers whose names match a pattern."""

    match: str = Field(min_length=1)
    """Module names, with * and ? as in file names: ``layer4.*``, ``*.attention.*``, ``fc``."""

    scheme: LayerScheme
    """Initial weights of these layers; ``default`` keeps those of the model's constructor."""

    gain: Positive = 1.0
    """The weights are multiplied by this."""

    std: Positive = 0.02
    """Standard deviation of ``truncated_normal``."""


class InitSpec(Config):
    """The initial weights. A name alone is the same as ``{scheme: name}``."""

    scheme: Scheme = "default"
    """``default``: those of the model's constructor. ``kaiming``: variance 2 / fan-in, for ReLU. ``xavier``:
    2 / (fan-in + fan-out), for tanh and linear layers. ``orthogonal``. ``truncated_normal``: cut at two
    standard deviations. ``lsuv``: orthogonal, then each layer scaled to output variance 1 on real data.
    All but ``default`` set the biases of these layers to zero."""

    gain: Positive = 1.0
    """The weights are multiplied by this."""

    std: Positive = 0.02
    """Standard deviation of ``truncated_normal``."""

    residual: Literal["keep", "zero", "depth_scaled"] = "keep"
    """Last layer of each residual branch. ``zero``: zero weights, so that the block starts as the identity.
    ``depth_scaled``: its weights are divided by the square root of the number of branches, as in GPT-2."""

    layers: tuple[LayerInit, ...] = ()
    """Exceptions by name; the first that matches a layer applies."""

    @field_validator("gain")
    @classmethod
    def _has_effect(cls, value: float, info: ValidationInfo) -> float:
        if value != 1.0 and info.data.get("scheme") in ("default", "lsuv"):
            raise ValueError("is for kaiming, xavier, orthogonal and truncated_normal: remove it")
        return value


InitChoice = NameOrSection[Scheme, InitSpec]
"""A scheme's name, or the whole section."""
