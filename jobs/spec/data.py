"""The section ``data`` of a spec: which samples, how large, and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from guard.config import Config
from jobs.spec.augment import AugmentChoice, AugmentSpec
from jobs.spec.errors import related
from jobs.spec.init import name_or_section
from jobs.spec.language import TextFields

_NEED_ROOT = ("imagefolder", "mnist", "kmnist", "cifar10", "cifar100", "svhn", "stl10", "usps")
_FILE_SIZE = 224
_MARGIN = 256 / 224
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Level = Annotated[float, Field(ge=0, le=1)]


class NormalizeSpec(Config):
    """What is subtracted from the pixels, and what they are divided by; of pixels from 0 to 1."""

    mean: tuple[Level, ...] = Field(default=_IMAGENET[0], min_length=1)
    """One number for each channel, or one for all. Default: ImageNet's."""

    std: tuple[Positive, ...] = Field(default=_IMAGENET[1], min_length=1)
    """One number for each channel, or one for all. Default: ImageNet's."""


NormalizeChoice = Annotated[
    Annotated[Literal["auto", "dataset", "imagenet", "none"], Tag("name")]
    | Annotated[NormalizeSpec, Tag("section")],
    Discriminator(name_or_section),
]
"""A name, or the numbers."""


class DataSpec(TextFields):
    """What is learned, and how much of it at a time."""

    dataset: Literal[
        "auto",
        "fashion-mnist",
        "digits",
        "mnist",
        "kmnist",
        "cifar10",
        "cifar100",
        "svhn",
        "stl10",
        "usps",
        "imagefolder",
    ] = "auto"
    """``auto``: Fashion-MNIST where it is found, else the digits that come with scikit-learn.
    ``imagefolder``: your own images, one folder for each class. The others as torchvision knows them."""

    root: str | None = None
    """Folder with the data set: its IDX files, gzipped or not, or a torchvision layout. If it is given, the
    data set comes from there or nowhere. ``imagefolder``: ``train/<class>/*.jpg`` and ``val/`` or ``test/``
    likewise, or ``<class>/*.jpg`` alone, of which a part is held out."""

    batch_size: PositiveInt = 128
    """Samples of a global batch, over all workers; a multiple of ``scale.workers``."""

    train_limit: PositiveInt | None = None
    """Train on this many samples only, a fixed random choice."""

    test_limit: PositiveInt | None = None
    """Evaluate on this many samples only, a fixed random choice."""

    image_size: PositiveInt | None = None
    """Height and width, in pixels, at which the model sees the images. Default: 224 for ``imagefolder``, else
    as they are stored."""

    resize: PositiveInt | None = None
    """The shorter side is scaled to this before the middle is cut out for ``image_size``. Default: 256 for
    224 and in proportion for ``imagefolder``, else ``image_size``."""

    normalize: NormalizeChoice = "auto"
    """``dataset``: by mean and deviation of the training images. ``imagenet``: by those of ImageNet, as
    published weights want it. ``none``: pixels from 0 to 1. ``auto``: ``imagenet`` for ``imagefolder``, else
    ``dataset``. Or a section with ``mean`` and ``std``."""

    augment: AugmentChoice = "none"
    """``standard``: random crop and, where it keeps the meaning, random mirroring. Or a section with more."""

    workers: NonNegativeInt | None = None
    """Processes of each worker that read and augment ahead; the samples are the same with any number. 0:
    none. Default: 4 for ``imagefolder`` on a GPU, else 0."""

    val_share: float = Field(default=0.1, gt=0, lt=1)
    """``imagefolder`` without ``val/`` and ``test/``: share of each class that is held out to evaluate on."""

    split_seed: NonNegativeInt = 0
    """``imagefolder`` without ``val/`` and ``test/``: fixes which images those are."""

    on_broken: Literal["error", "skip"] = "error"
    """An image file that cannot be read: ``error`` ends the job and names it, ``skip`` trains on the next
    image of the data set instead, leaves it out of the evaluation, and counts it in the metrics."""

    download: bool = False
    """Whether torchvision may download the data set if it is found nowhere."""

    @field_validator("resize")
    @classmethod
    def _covers(cls, value: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("image_size") or (
            _FILE_SIZE if info.data.get("dataset") == "imagefolder" else None
        )
        if value is not None and size is None:
            raise ValueError("is for an image size: set data.image_size too, or remove it")
        if value is not None and size is not None and value < size:
            raise ValueError(f"must be at least data.image_size = {size}")
        return value

    @field_validator("val_share", "split_seed", "on_broken")
    @classmethod
    def _only_files(cls, value: float | int | str, info: ValidationInfo) -> float | int | str:
        default = cls.model_fields[info.field_name or ""].default
        dataset = info.data.get("dataset", "imagefolder")
        if value != default and dataset != "imagefolder":
            raise ValueError(f"is for imagefolder, and data.dataset is {dataset}: remove it")
        return value

    @field_validator("download")
    @classmethod
    def _somewhere(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("dataset") in ("digits", "imagefolder"):
            raise ValueError(f"there is nothing to download for {info.data['dataset']}: remove it")
        return value

    @model_validator(mode="after")
    def _has_its_folder(self) -> Self:
        if self.root is None and self.dataset in _NEED_ROOT:
            name = self.dataset
            what = "holds train/<class>/" if name == "imagefolder" else "holds it, or that it may go to"
            raise related(f"is required for {name}: the folder that {what}", field="root", value=None)
        return self

    @property
    def augmentation(self) -> AugmentSpec | None:
        """``augment`` in its long form; None for none."""
        return AugmentSpec.of(self.augment)

    @property
    def size(self) -> int | None:
        """Height and width at which the model sees the images; None: as they are stored."""
        if self.image_size is None and self.dataset == "imagefolder":
            return _FILE_SIZE
        return self.image_size

    @property
    def resize_to(self) -> int | None:
        """The shorter side before the middle is cut out; None: as stored."""
        if self.resize is not None or self.size is None:
            return self.resize
        return round(self.size * _MARGIN) if self.dataset == "imagefolder" else self.size

    @property
    def normalization(self) -> NormalizeSpec | None:
        """The numbers; None where they are those of the training images."""
        if isinstance(self.normalize, NormalizeSpec):
            return self.normalize
        if self.normalize == "none":
            return NormalizeSpec(mean=(0.0,), std=(1.0,))
        files = self.dataset == "imagefolder"
        return (
            NormalizeSpec() if self.normalize == "imagenet" or (self.normalize == "auto" and files) else None
        )
