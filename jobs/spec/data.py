"""The section ``data`` of a spec: which samples, how large, and how they are read."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator, model_validator

from guard.config import Config
from jobs.spec.augment import AugmentChoice, AugmentSpec, Probability
from jobs.spec.errors import related
from jobs.spec.huggingface import DocumentFields
from jobs.spec.init import NameOrSection, Positive
from jobs.spec.language import TextFields

_Torchvision = Literal["mnist", "kmnist", "cifar10", "cifar100", "svhn", "stl10", "usps"]
_Own = Literal["imagefolder", "table", "webdataset"]
_OWN = get_args(_Own)
_FILE_SIZE = 224
_MARGIN = 256 / 224
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class NormalizeSpec(Config):
    """What is subtracted from the pixels, which range from 0 to 1, and what they are then divided by."""

    mean: tuple[Probability, ...] = Field(default=_IMAGENET[0], min_length=1)
    """One number per channel, or one for all. Default: ImageNet's."""

    std: tuple[Positive, ...] = Field(default=_IMAGENET[1], min_length=1)
    """One number per channel, or one for all. Default: ImageNet's."""


NormalizeChoice = NameOrSection[Literal["auto", "dataset", "imagenet", "none"], NormalizeSpec]
"""A name, or the numbers."""


class ColumnsSpec(Config):
    """The columns of a table."""

    image: str = Field(default="image", min_length=1)
    """Paths of image files, relative to the table's folder, or image files as bytes, as Hugging Face
    ``datasets`` stores them."""

    label: str = Field(default="label", min_length=1)
    """The class: a text, or a whole number."""

    features: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Workload tabular: the columns with numbers, or with lists of numbers. Default: all that are, besides
    the label."""

    text: str | None = Field(default=None, min_length=1)
    """Workload language: ``data.path`` is a table like those of ``data.root``, and this column its text; rows
    are joined by an empty line. Tabular: texts are classified instead of numbers. Huggingface: the column
    with a text, or a chat as a list of messages; default: ``messages``, ``conversations`` or ``text``."""

    @model_validator(mode="after")
    def _features_are_apart(self) -> Self:
        names = list(self.features or ())
        if self.label in names:
            raise related(
                f"has the label, {self.label}, from which the class follows", value=names, field="features"
            )
        if len(set(names)) < len(names):
            raise related("names a column twice", value=names, field="features")
        return self


class StreamSpec(Config):
    """Reads a table or tars block by block, ahead of the training, in Ray tasks: for data that fit on no disk
    and in no memory. A block is a row group of Parquet, 8 MB of CSV or JSON lines, or 32 MB of a tar."""

    shuffle_rows: PositiveInt = 10_000
    """Rows among which the order is random, over all workers; their blocks are in memory. The blocks
    themselves are in random order in each epoch."""

    lanes: PositiveInt | None = None
    """Places in the data that are read at the same time, each for an equal part of the batch. A worker reads
    the lanes of its share, so there should be at least as many as workers; each has a block in memory.
    Default: the largest power of two up to 8 that divides ``data.batch_size``."""

    prefetch_blocks: PositiveInt = Field(default=2, le=64)
    """Blocks that each worker reads before they are needed."""


class DataSpec(TextFields, DocumentFields):
    """The data set, the batch, and how samples are read."""

    dataset: Literal[
        "auto", "fashion-mnist", "digits", _Torchvision, "imagefolder", "table", "webdataset"
    ] = "auto"
    """``auto``: Fashion-MNIST if it is found, else the digits of scikit-learn. ``imagefolder``: your own
    images, one folder per class. ``table``: your own images, named or contained in a table.
    ``webdataset``: your own images in tar files. The others are torchvision's."""

    root: str | None = None
    """Folder with the data set: its IDX files, gzipped or not, or a torchvision layout. If it is set, no
    other place is searched. ``imagefolder``: ``train/<class>/*.jpg`` and ``val/`` or ``test/`` likewise, or
    ``<class>/*.jpg`` alone, of which a part is held out. ``table``: a file (.csv, .tsv, .parquet, .jsonl,
    .json, .arrow; text also gzipped), a folder with ``train.*`` and ``val.*`` or ``test.*``, or one that
    ``save_to_disk`` of Hugging Face ``datasets`` wrote. ``webdataset``: a .tar file, or a folder of them,
    with ``<key>.jpg`` and ``<key>.cls`` (or .txt, .json) for each sample; a tar with ``val`` or ``test`` in
    its name is held out."""

    columns: ColumnsSpec = Field(default_factory=ColumnsSpec)
    """The names of the columns of a table."""

    stream: StreamSpec | None = None
    """Reads ``table``, ``webdataset`` or, for workload huggingface with ``packing: false``, the documents of
    ``path`` block by block instead of as a whole; ``{}`` for the defaults. ``root`` or ``path`` may then be a
    URL, such as ``s3://bucket/folder``."""

    batch_size: PositiveInt = 128
    """Samples in a global batch, over all workers; a multiple of ``scale.workers``."""

    train_limit: PositiveInt | None = None
    """Train on this many samples only, a fixed random choice."""

    test_limit: PositiveInt | None = None
    """Evaluate on this many samples only, a fixed random choice."""

    image_size: PositiveInt | None = None
    """Height and width, in pixels, of the images that the model gets. Default: 224 for ``imagefolder`` and
    ``table``, else as stored."""

    resize: PositiveInt | None = None
    """The shorter side is scaled to this before the center crop of ``image_size``. Default for
    ``imagefolder`` and ``table``: 256 for 224, and in proportion; else ``image_size``."""

    normalize: NormalizeChoice = "auto"
    """``dataset``: by mean and deviation of the training images. ``imagenet``: by those of ImageNet, as
    published weights need it. ``none``: pixels from 0 to 1. ``auto``: ``imagenet`` for ``imagefolder`` and
    ``table``, else ``dataset``. Or a section with ``mean`` and ``std``."""

    augment: AugmentChoice = "none"
    """``standard``: random crop and, unless it changes the meaning, random flip. Or a section with more."""

    workers: NonNegativeInt | None = None
    """Processes per worker that prefetch and augment; the samples do not depend on their number. 0: none.
    Default: 4 for ``imagefolder`` and ``table`` on a GPU, else 0."""

    val_share: float = Field(default=0.1, gt=0, lt=1)
    """Your own images without ``val/`` and ``test/``: share of each class that is held out for evaluation."""

    split_seed: NonNegativeInt = 0
    """Your own images without ``val/`` and ``test/``: seed of the choice of those images."""

    on_broken: Literal["error", "skip"] = "error"
    """An image file that cannot be read. ``error``: end the job and name the file. ``skip``: train on the
    next image of the data set instead, exclude it from the evaluation, and count it in the metrics."""

    on_changed: Literal["error", "continue"] = "error"
    """Data that are not those of the checkpoint that a job continues from: other classes, files or text.
    ``error``: end the job and say what differs. ``continue``: train on them, with a warning."""

    download: bool = False
    """Whether torchvision may download the data set if it is not found."""

    @field_validator("resize")
    @classmethod
    def _covers(cls, value: int | None, info: ValidationInfo) -> int | None:
        files = info.data.get("dataset") in _OWN
        size = info.data.get("image_size") or (_FILE_SIZE if files else None)
        if value is not None and size is None:
            raise ValueError("needs an image size: set data.image_size too, or remove it")
        if value is not None and size is not None and value < size:
            raise ValueError(f"must be at least data.image_size = {size}")
        return value

    @field_validator("val_share", "split_seed", "on_broken")
    @classmethod
    def _only_files(cls, value: float | int | str, info: ValidationInfo) -> float | int | str:
        default = cls.model_fields[info.field_name or ""].default
        dataset = info.data.get("dataset", "imagefolder")
        if value != default and dataset not in _OWN:
            raise ValueError(f"is for imagefolder, and data.dataset is {dataset}: remove it")
        return value

    @field_validator("columns")
    @classmethod
    def _only_tables(cls, value: ColumnsSpec, info: ValidationInfo) -> ColumnsSpec:
        dataset = info.data.get("dataset", "table")
        if dataset == "webdataset" and value == ColumnsSpec(text=value.text, label=value.label):
            return value
        if value != ColumnsSpec(text=value.text) and dataset != "table":
            raise ValueError(f"is for table, and data.dataset is {dataset}: remove it, or write table")
        return value

    @field_validator("download")
    @classmethod
    def _somewhere(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("dataset") in ("digits", *_OWN):
            raise ValueError(f"there is nothing to download for {info.data['dataset']}: remove it")
        return value

    @model_validator(mode="after")
    def _has_its_folder(self) -> Self:
        name = self.dataset
        if self.root is None and name in (*_OWN, *get_args(_Torchvision)):
            what = "train/<class>/" if name == "imagefolder" else "it, or where to download it"
            message = f"is required for {name}: the folder that contains {what}"
            if name == "table":
                message = "is required for table: its file, or a folder with train.* and val.*"
            if name == "webdataset":
                message = "is required for webdataset: a .tar file, or a folder of them"
            raise related(message, field="root", value=None)
        return self

    @model_validator(mode="after")
    def _can_stream(self) -> Self:
        if self.stream is None:
            for name, place in (("root", self.root), ("path", self.path)):
                if place is not None and "://" in place:
                    message = "only a stream is read from a URL: set data.stream"
                    raise related(message, field=name, value=place)
            return self
        lanes, augment = self.stream.lanes, self.augmentation
        if self.path is None and self.dataset not in ("table", "webdataset"):
            message = f"is for table and webdataset, and data.dataset is {self.dataset}: remove it"
            raise related(message, field="stream", value="set")
        if lanes is not None and self.batch_size % lanes:
            message = f"must divide data.batch_size = {self.batch_size}"
            raise related(message, field="stream.lanes", value=lanes)
        if augment is not None and augment.mixes:
            message = "has MixUp or CutMix, for which a stream has no partners: remove them"
            raise related(message, field="augment", value="set")
        if self.workers:
            message = "is for data that are not streamed; Ray reads a stream ahead: remove it"
            raise related(message, field="workers", value=self.workers)
        return self

    @property
    def augmentation(self) -> AugmentSpec | None:
        """``augment`` in its long form; None for ``none``."""
        if isinstance(self.augment, AugmentSpec):
            return self.augment
        return AugmentSpec() if self.augment == "standard" else None

    @property
    def size(self) -> int | None:
        """Height and width of the images that the model gets; None: as stored."""
        if self.image_size is None and self.dataset in _OWN:
            return _FILE_SIZE
        return self.image_size

    @property
    def resize_to(self) -> int | None:
        """The shorter side before the center crop; None: as stored."""
        if self.resize is not None or self.size is None:
            return self.resize
        return round(self.size * _MARGIN) if self.dataset in _OWN else self.size

    @property
    def normalization(self) -> NormalizeSpec | None:
        """The numbers; None if they are those of the training images."""
        if isinstance(self.normalize, NormalizeSpec):
            return self.normalize
        if self.normalize == "none":
            return NormalizeSpec(mean=(0.0,), std=(1.0,))
        automatic = "imagenet" if self.dataset in _OWN else "dataset"
        name = automatic if self.normalize == "auto" else self.normalize
        return NormalizeSpec() if name == "imagenet" else None
