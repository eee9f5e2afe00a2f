"""The sections of a spec: every field with its meaning, its default and its limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from guard.config import Config
from guard.record.metrics import MAX_LAYERS, MAX_RANKS
from jobs.spec.data import DataSpec
from jobs.spec.init import InitChoice, InitSpec
from jobs.spec.language import GptFields
from jobs.spec.optim import OptimizerSpec, ScheduleSpec, Share

__all__ = [
    "DataSpec",
    "MetricsSpec",
    "ModelSpec",
    "OptimizerSpec",
    "ScaleSpec",
    "ScheduleSpec",
    "TrainSpec",
]


class ScaleSpec(Config):
    """How many workers train, on what, and how failures are borne."""

    workers: PositiveInt = 1
    """Worker processes; each holds a replica of the model and takes an equal share of every batch."""

    min_workers: PositiveInt | None = None
    """Makes the job elastic: it trains with as many workers as the cluster's nodes have room for, from this
    many up to ``workers``, and continues from its latest good checkpoint with more or fewer of them when a
    node comes or goes. Ray counts whole nodes, whatever other jobs use of them."""

    resize_every_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds between looks whether an elastic job could have more workers."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """``gpu`` gives each worker one GPU; ``auto`` does so where the cluster has enough of them."""

    cpus_per_worker: float = Field(default=1, gt=0, allow_inf_nan=False)
    """CPU cores reserved for each worker, and the threads it computes with."""

    max_failures: NonNegativeInt = 3
    """How often the job is restarted from its latest good checkpoint after a worker died."""

    max_hardware_faults: PositiveInt | None = 3
    """After this many batches that gave another result when computed again, the job leaves the node of the
    worker that erred, if the others have room for it. ``null``: never."""

    timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds after which a collective that a dead or stuck worker never joins counts as failed."""

    stall_timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Seconds after which a worker is given up that does not answer, because its process is frozen, or that
    does not get on with one batch, because its code hangs; all workers are then started again from the latest
    checkpoint."""

    stop_grace_s: float = Field(default=6.0, gt=0, allow_inf_nan=False)
    """Seconds that a job has to save its state when it is asked to stop; after that its latest checkpoint
    stands."""

    @property
    def fewest_workers(self) -> int:
        """Workers with which the job can run."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def world_sizes(self) -> range:
        """All numbers of workers that the job may have."""
        return range(self.fewest_workers, self.workers + 1)

    @property
    def sizes_text(self) -> str:
        """``4``, or ``2 to 4``."""
        sizes = self.world_sizes
        return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"

    @field_validator("min_workers")
    @classmethod
    def _not_above_workers(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and "workers" in info.data and value > info.data["workers"]:
            raise ValueError(f"is more than scale.workers = {info.data['workers']}")
        return value


class ModelSpec(GptFields):
    """The network."""

    name: str = "resnet18"
    """Vision: any torchvision classification model, by its torchvision name. Language: ``gpt-tiny``,
    ``gpt-mini``, ``gpt-small`` (as GPT-2, 124 M with its vocabulary), ``gpt-medium``, ``gpt-large``,
    ``gpt-xl``, or ``gpt`` with a size of your own."""

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

    channels_last: bool = False
    """Stores images and convolutions channel by channel within each pixel: faster on a GPU in half precision,
    and on many CPUs."""

    compile: bool = False
    """Compiles the forward pass with ``torch.compile``: the first steps take longer, the others less."""

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
