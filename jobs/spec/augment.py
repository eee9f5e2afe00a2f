"""The section ``data.augment`` of a spec: augmentation of the training images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, ValidationInfo, field_validator

from guard.config import Config
from jobs.spec.init import NameOrSection, Positive

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _rises(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError("must be the smallest and the largest share, both above 0, as [0.1, 1.0]")
    return value


Range = Annotated[tuple[Probability, Probability], AfterValidator(_rises)]


class ColorSpec(Config):
    """Random changes of color, each drawn uniformly from its range."""

    brightness: Strength = 0.4
    """Factor between 1 - this and 1 + this."""

    contrast: Strength = 0.4
    """Factor between 1 - this and 1 + this."""

    saturation: Strength = 0.4
    """Factor between 1 - this and 1 + this; no effect on gray images."""

    hue: float = Field(default=0.1, ge=0, le=0.5)
    """Shift by up to this share of the color circle; no effect on gray images."""


class RandAugmentSpec(Config):
    """Cubuk et al., "RandAugment" (2020): operations drawn from fourteen, all of one magnitude."""

    operations: PositiveInt = 2
    """Number of operations, applied in sequence."""

    magnitude: int = Field(default=9, ge=0, le=30)
    """Magnitude of all operations, 0 to 30."""


class AugMixSpec(Config):
    """Hendrycks et al., "AugMix" (2020): chains of operations, blended with each other and the original."""

    severity: int = Field(default=3, ge=1, le=10)
    """Severity of the operations, 1 to 10."""

    width: PositiveInt = 3
    """Number of chains to blend."""

    depth: PositiveInt | None = None
    """Operations per chain. Default: one to three, at random."""

    alpha: Positive = 1.0
    """Concentration of the blend weights' distributions (Dirichlet and Beta)."""


class ErasingSpec(Config):
    """Zhong et al., "Random Erasing" (2020): a rectangle is filled with the mean of the data set."""

    probability: Probability = 0.25
    """Probability that an image loses a rectangle."""

    scale: Range = (0.02, 0.33)
    """Smallest and largest area of the rectangle, as a share of the image."""


class AugmentSpec(Config):
    """Augmentation of the training images. Fields that are not set are as in ``standard``."""

    crop: Literal["auto", "none", "pad", "resized"] = "auto"
    """``pad``: a random window of the image with a black margin. ``resized``: a random part of any size and
    aspect ratio, scaled to the image size. ``auto``: ``resized`` for image files, else ``pad``."""

    crop_padding: PositiveInt | None = None
    """Margin of ``pad`` in pixels. Default: an eighth of the image size."""

    crop_scale: Range = (0.08, 1.0)
    """Smallest and largest area of ``resized``, as a share of the image."""

    flip: Literal["auto", "none", "horizontal", "vertical", "both"] = "auto"
    """Flips half of the images. ``auto``: ``horizontal``, but ``none`` for characters."""

    rotation: float = Field(default=0.0, ge=0, le=180)
    """Rotates by up to this many degrees in either direction."""

    color: ColorSpec | None = None
    """Brightness, contrast, saturation, hue; ``{}`` for the default ranges."""

    randaugment: RandAugmentSpec | None = None
    """RandAugment; ``{}`` for the default strength."""

    augmix: AugMixSpec | None = None
    """AugMix; ``{}`` for the default strength."""

    erasing: ErasingSpec | None = None
    """Random erasing; ``{}`` for the default share."""

    mixup: Strength = 0.0
    """MixUp of pairs of samples: alpha of Zhang et al. (2018), such as 0.2; 0 for none."""

    cutmix: Strength = 0.0
    """CutMix of pairs of samples: alpha of Yun et al. (2019), such as 1.0; 0 for none. If ``mixup`` is set
    too, each sample gets one of the two."""

    mix_probability: Probability = 1.0
    """Share of the samples that are mixed by ``mixup`` or ``cutmix``."""

    @field_validator("crop_padding")
    @classmethod
    def _for_pad(cls, value: int | None, info: ValidationInfo) -> int | None:
        crop = info.data.get("crop")
        if value is not None and crop not in ("auto", "pad"):
            raise ValueError(f"is for crop: pad, and crop is {crop}: remove it")
        return value

    @field_validator("mix_probability")
    @classmethod
    def _mixes(cls, value: float, info: ValidationInfo) -> float:
        if value != 1.0 and not (info.data.get("mixup") or info.data.get("cutmix")):
            raise ValueError("is for mixup and cutmix: set one of them, or remove it")
        return value

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with each other."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


AugmentChoice = NameOrSection[Literal["none", "standard"], AugmentSpec]
"""``none``, ``standard``, or the whole section."""
