"""The sections of a spec: every field with its meaning, its default and its limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from guard.base import Config
from guard.metrics import MAX_LAYERS, MAX_RANKS
from jobs.spec_init import InitChoice, InitSpec

_BY_OPTIMIZER: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
    "adam": {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.01},
}
_ADAM_BETAS = (0.9, 0.999)
Share = Annotated[float, Field(ge=0, lt=1)]


def _by_name(field: str) -> Callable[[dict[str, Any]], float]:
    return lambda optimizer: _BY_OPTIMIZER[optimizer["name"]][field]


class ScaleSpec(Config):
    """How many workers train, on what, and how failures are borne."""

    workers: PositiveInt = 1
    """Worker processes; each holds a replica of the model and takes an equal share of every batch."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """``gpu`` gives each worker one GPU; ``auto`` does so where the cluster has enough of them."""

    cpus_per_worker: float = Field(default=1, gt=0, allow_inf_nan=False)
    """CPU cores reserved for each worker, and the threads it computes with."""

    max_failures: NonNegativeInt = 3
    """How often the job is restarted from its latest good checkpoint after a worker died."""

    timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds after which a collective that a dead or stuck worker never joins counts as failed."""

    stall_timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Seconds after which a worker process that does not answer, because it is frozen, is given up; all
    workers are then started again from the latest checkpoint."""

    stop_grace_s: float = Field(default=6.0, gt=0, allow_inf_nan=False)
    """Seconds that a job has to save its state when it is asked to stop; after that its latest checkpoint
    stands."""


class ModelSpec(Config):
    """The network."""

    name: str = "resnet18"
    """Any torchvision classification model, by its torchvision name."""

    stem: Literal["auto", "imagenet", "small", "tiny"] = "auto"
    """First layers of a ResNet. ``imagenet``: as published (7x7 stride 2, max-pool). ``small``: 3x3 stride 1,
    no max-pool. ``tiny``: 3x3 stride 2, no max-pool, a quarter of the cost of ``small``. ``auto``: ``small``
    for images of up to 64 pixels, else ``imagenet``."""

    pretrained: bool = False
    """Start from torchvision's published weights, wherever their shapes fit this model."""

    init: InitChoice = "default"
    """Initial weights: the name of a scheme, or a section with more."""

    @field_validator("init")
    @classmethod
    def _not_overwriting(cls, value: InitSpec | str, info: ValidationInfo) -> InitSpec | str:
        if info.data.get("pretrained") and value not in ("default", InitSpec()):
            raise ValueError(
                "would overwrite the published weights: set model.pretrained: false, or leave it out"
            )
        return value

    @property
    def initialization(self) -> InitSpec:
        """``init`` in its long form."""
        return self.init if isinstance(self.init, InitSpec) else InitSpec(scheme=self.init)


class DataSpec(Config):
    """What is learned, and how much of it at a time."""

    dataset: Literal["auto", "fashion-mnist", "digits"] = "auto"
    """``auto``: Fashion-MNIST where it is found, else the digits that come with scikit-learn."""

    root: str | None = None
    """Folder with the data set: its IDX files, gzipped or not, or a torchvision layout. If it is given, the
    data set comes from there or nowhere."""

    batch_size: PositiveInt = 128
    """Samples of a global batch, over all workers; a multiple of ``scale.workers``."""

    train_limit: PositiveInt | None = None
    """Train on this many samples only, a fixed random choice."""

    test_limit: PositiveInt | None = None
    """Evaluate on this many samples only, a fixed random choice."""

    augment: Literal["none", "standard"] = "none"
    """``standard``: random crop of the padded image and, where it keeps the meaning, random mirroring."""

    download: bool = False
    """Whether torchvision may download the data set if it is found nowhere."""


class OptimizerSpec(Config):
    """The optimizer. Learning rate, momentum and weight decay default by its name."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """The algorithm."""

    lr: float = Field(default_factory=_by_name("lr"), gt=0, allow_inf_nan=False)
    """Peak learning rate. Default: 0.05 for sgd, 0.001 for adam and adamw."""

    momentum: float = Field(default_factory=_by_name("momentum"), ge=0, lt=1)
    """Momentum of sgd. Default: 0.9 for sgd; the others have none."""

    betas: tuple[Share, Share] = _ADAM_BETAS
    """Decay rates of the two moments of adam and adamw."""

    weight_decay: float = Field(default_factory=_by_name("weight_decay"), ge=0, allow_inf_nan=False)
    """Weight decay: L2 for sgd and adam, decoupled for adamw. Default: 0.0005 sgd, 0 adam, 0.01 adamw."""

    nesterov: bool = False
    """Nesterov momentum, for sgd."""

    @field_validator("momentum", "nesterov")
    @classmethod
    def _only_sgd(cls, value: float | bool, info: ValidationInfo) -> float | bool:
        name = info.data.get("name", "sgd")
        if value and name != "sgd":
            raise ValueError(f"is for sgd, and optimizer.name is {name}: remove it, or set betas")
        return value

    @field_validator("betas")
    @classmethod
    def _not_sgd(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        if info.data.get("name") == "sgd" and value != _ADAM_BETAS:
            raise ValueError("is for adam and adamw, and optimizer.name is sgd: remove it, or set momentum")
        return value

    @field_validator("nesterov")
    @classmethod
    def _needs_momentum(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("momentum") == 0:
            raise ValueError("needs momentum: set optimizer.momentum above 0")
        return value


class ScheduleSpec(Config):
    """How the learning rate moves over the steps."""

    name: Literal["constant", "cosine", "linear"] = "cosine"
    """After the warm-up: stay at the peak, or fall to zero along a half cosine or a line."""

    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate climbs from zero to its peak; fewer than the whole run."""


class TrainSpec(Config):
    """How long to train, and what to do on the way."""

    max_steps: PositiveInt | None = None
    """Optimizer steps after which training ends."""

    epochs: PositiveInt | None = Field(default_factory=lambda train: None if train["max_steps"] else 2)
    """Passes over the training set; with ``max_steps`` too, what comes first ends the training.
    Default: 2, or no limit where ``max_steps`` is given."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """``bf16``: autocast. ``fp16``: autocast with a loss scale that adapts."""

    micro_batches: PositiveInt = 1
    """Parts in which each worker's share of a batch goes through the model: less memory, same step."""

    ema_decay: Share | None = None
    """Keeps a moving average of the weights with this decay, such as 0.999, and evaluates that."""

    eval_every_epochs: PositiveInt = 1
    """Epochs between evaluations on the test set; there is always one at the end."""

    checkpoint_every_steps: PositiveInt = 200
    """Steps between checkpoints; there is always one at the end."""

    checkpoint_keep: PositiveInt = 3
    """Newest good checkpoints that stay."""

    checkpoint_best: str | None = Field(default=None, pattern=r"^(min|max):\w+$")
    """``max:test_accuracy``, ``min:test_loss``: the good checkpoint with the best value of that metric in the
    evaluation before it stays, too."""

    checkpoint_storage: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9+.\-]*://.+$")
    """URL under which checkpoints lie instead of the job's folder, as ``s3://bucket/folder``: any file system
    of pyarrow or fsspec. Those of this job go to ``<checkpoint_storage>/<name>/checkpoints/``."""

    log_layers_every: PositiveInt = 10
    """Steps between rows that record the gradient norm of every layer."""

    @field_validator("epochs")
    @classmethod
    def _either(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and info.data.get("max_steps", 0) is None:
            raise ValueError("nothing ends the training: set train.epochs or train.max_steps")
        return value


class MetricsSpec(Config):
    """The Prometheus endpoint."""

    port: int = Field(default=9410, ge=0, le=65535)
    """Port of the endpoint, one for all jobs of a cluster."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address the endpoint listens on."""

    max_layers: PositiveInt = MAX_LAYERS
    """Parameters beyond so many are shown in groups, by module; the report has each of them."""

    max_ranks: PositiveInt = MAX_RANKS
    """Of more ranks than these, only those are shown whose local gradient norm stands out."""
