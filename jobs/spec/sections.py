"""The sections of a spec: every field with its meaning, its default and its limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from guard.config import Config
from guard.record.metrics import MAX_LAYERS, MAX_RANKS
from jobs.spec.huggingface import HuggingFaceFields
from jobs.spec.init import InitChoice, InitSpec
from jobs.spec.language import SHAPE, SIZES, GptFields, GptShape
from jobs.spec.optim import Share


class ScaleSpec(Config):
    """How many workers train, on what, and how failures are handled."""

    workers: PositiveInt = 1
    """Worker processes; each has a replica of the model and computes an equal share of every batch."""

    min_workers: PositiveInt | None = None
    """Makes the job elastic: it trains with as many workers as fit on the cluster's nodes, from this number
    up to ``workers``, and when a node joins or leaves it continues from its latest good checkpoint with more
    or fewer workers. Ray counts whole nodes, including what other jobs use of them."""

    resize_every_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds between checks whether an elastic job can have more workers."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """``gpu``: one GPU per worker. ``auto``: the same if the cluster has enough GPUs, else CPU."""

    cpus_per_worker: float = Field(default=1, gt=0, allow_inf_nan=False)
    """CPU cores reserved for each worker, and its number of compute threads."""

    max_failures: NonNegativeInt = 3
    """How many times the job is restarted from its latest good checkpoint after a worker died."""

    max_hardware_faults: PositiveInt | None = 3
    """After this many batches that gave a different result when recomputed, the job moves off the node of the
    faulty worker, if the other nodes have room. ``null``: never."""

    start_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds that an embedded Ray has to start; after that it is tried again, with twice the time."""

    timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds after which a collective fails that a dead or stuck worker does not join."""

    stall_timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Seconds after which a worker counts as dead that does not respond, because its process is frozen, or
    that makes no progress on a batch, because its code hangs; all workers are then restarted from the latest
    checkpoint."""

    stop_grace_s: float = Field(default=6.0, gt=0, allow_inf_nan=False)
    """Seconds that a job has to save its state when it is asked to stop; after that its latest checkpoint
    counts."""

    @property
    def fewest_workers(self) -> int:
        """The smallest number of workers with which the job can run."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def world_sizes(self) -> range:
        """All numbers of workers with which the job can run."""
        return range(self.fewest_workers, self.workers + 1)

    @property
    def workers_text(self) -> str:
        """``1 worker``, ``4 workers``, or ``2 to 4 workers``."""
        sizes = self.world_sizes
        fewest = "" if len(sizes) == 1 else f"{sizes[0]} to "
        return f"{fewest}{sizes[-1]} {'worker' if sizes[-1] == 1 else 'workers'}"

    @field_validator("min_workers")
    @classmethod
    def _not_above_workers(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and "workers" in info.data and value > info.data["workers"]:
            raise ValueError(f"is more than scale.workers = {info.data['workers']}")
        return value


class ModelSpec(GptFields, HuggingFaceFields):
    """The network."""

    name: str = "resnet18"
    """Vision: any torchvision classification model, by its torchvision name. Language: ``gpt-tiny``,
    ``gpt-mini``, ``gpt-small`` (as GPT-2, 124 M with its vocabulary), ``gpt-medium``, ``gpt-large``,
    ``gpt-xl``, or ``gpt`` with your own size. Tabular: ``mlp``. Huggingface: the folder of a model, as
    ``save_pretrained`` writes it, or its name on the hub; a configuration without weights is initialized from
    the seed."""

    stem: Literal["auto", "imagenet", "small", "tiny"] = "auto"
    """First layers of a ResNet. ``imagenet``: as published (7x7 stride 2, max-pool). ``small``: 3x3 stride 1,
    no max-pool. ``tiny``: 3x3 stride 2, no max-pool, a quarter of the cost of ``small``. ``auto``: ``small``
    for images of up to 64 pixels, else ``imagenet``."""

    pretrained: bool = False
    """Start from torchvision's published weights, where their shapes fit this model."""

    weights: str | None = Field(default=None, min_length=1)
    """Start from these weights: a ``.safetensors`` file, the folder of a Hugging Face model, a job's folder
    (its newest good checkpoint) or one of its checkpoints. Names and shapes must be those of the model."""

    weights_strict: bool = True
    """Whether every tensor of the model must be in ``weights``, and no other. ``false``: what fits is loaded,
    and the rest, such as a head for other classes, is initialized."""

    init: InitChoice = "default"
    """Initial weights: the name of a scheme, or a section with more settings."""

    @field_validator("init")
    @classmethod
    def _not_overwriting(cls, value: InitSpec | str, info: ValidationInfo) -> InitSpec | str:
        if info.data.get("pretrained") and value not in ("default", InitSpec()):
            message = "would overwrite the published weights: set model.pretrained: false, or remove it"
            raise ValueError(message)
        return value

    def gpt_shape(self, tokens: int) -> GptShape:
        """The size of the gpt that this describes; ``tokens`` is the vocabulary where none is set."""
        named = dict(zip(SHAPE, SIZES.get(self.name, ()), strict=False))
        given = {name: getattr(self, name) for name in SHAPE if getattr(self, name) is not None}
        given |= {"vocabulary": self.vocabulary or tokens, "mlp": self.mlp or "swiglu"}
        return GptShape(**{**named, **given}, qk_norm=self.qk_norm)

    @property
    def initialization(self) -> InitSpec:
        """``init`` in its long form."""
        return self.init if isinstance(self.init, InitSpec) else InitSpec(scheme=self.init)


class EarlyStoppingSpec(Config):
    """When a training ends before its last step, because it no longer improves."""

    metric: str = Field(default="min:test_loss", pattern=r"^(min|max):\w+$")
    """A metric of the evaluations: ``min:test_loss`` or ``max:test_accuracy``."""

    patience: PositiveInt = 3
    """Evaluations in a row that are not better than the best one before them."""

    min_delta: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """By how much an evaluation must be better."""


class TrainSpec(Config):
    """How long to train, how to evaluate, and when to save."""

    max_steps: PositiveInt | None = None
    """Optimizer steps after which training ends."""

    epochs: PositiveInt | None = Field(default_factory=lambda train: None if train["max_steps"] else 2)
    """Passes over the training set; with ``max_steps`` too, whichever is reached first ends the training.
    Default: 2, or no limit if ``max_steps`` is set."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """``bf16``: autocast. ``fp16``: autocast with a dynamic loss scale."""

    micro_batches: PositiveInt = 1
    """Parts into which each worker splits its share of a batch: less memory, same step."""

    ema_decay: Share | None = None
    """Keeps a moving average of the weights with this decay, such as 0.999, and evaluates it."""

    eval_every_epochs: PositiveInt = 1
    """Epochs between evaluations on the test set; there is always one at the end."""

    eval_every_steps: PositiveInt | None = None
    """Steps between evaluations, instead of epochs."""

    early_stopping: EarlyStoppingSpec | None = None
    """Ends the training where evaluations no longer improve."""

    max_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Hours, from the first step of this start, after which the job saves its state and ends as ``stopped``;
    it can be resumed."""

    checkpoint_every_steps: PositiveInt = 200
    """Steps between checkpoints; there is always one at the end."""

    checkpoint_every_minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Also a checkpoint whenever this time has passed since the last one."""

    checkpoint_keep: PositiveInt = 3
    """Number of newest good checkpoints to keep."""

    checkpoint_best: str | None = Field(default=None, pattern=r"^(min|max):\w+$")
    """Also keep the good checkpoint with the best value of a metric, as ``max:test_accuracy`` or
    ``min:test_loss``, in the evaluation before it."""

    checkpoint_storage: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9+.\-]*://.+$")
    """URL under which checkpoints are stored instead of the job's folder, as ``s3://bucket/folder``: any file
    system of pyarrow or fsspec. Those of this job go to ``<checkpoint_storage>/<name>/checkpoints/``."""

    log_layers_every: PositiveInt = 10
    """Steps between rows that record the gradient norm of every layer."""

    profile_steps: NonNegativeInt = 0
    """Steps that torch's profiler records, after the first five, on the first worker: a trace and a table of
    operators in the job's folder. ``gradguard train SPEC --profile`` records 3."""

    channels_last: bool = False
    """Stores images and convolutions in the memory format channels last: faster on a GPU in half precision,
    and on many CPUs."""

    compile: bool = False
    """Compiles the forward pass with ``torch.compile``: the first steps are slower, the others faster."""

    @field_validator("epochs")
    @classmethod
    def _either(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and info.data.get("max_steps", 0) is None:
            raise ValueError("training would never end: set train.epochs or train.max_steps")
        return value


class MetricsSpec(Config):
    """The Prometheus endpoint."""

    port: int = Field(default=9410, ge=0, le=65535)
    """Port of the endpoint, one for all jobs of a cluster."""

    host: str | None = Field(default=None, min_length=1)
    """Address the endpoint listens on. Default: ``$GRADGUARD_METRICS_HOST`` on the head node, which a
    platform sets for all jobs, else 127.0.0.1."""

    max_layers: PositiveInt = MAX_LAYERS
    """Above this number, parameters are shown in groups by module; the report has each of them."""

    max_ranks: PositiveInt = MAX_RANKS
    """Above this number, only ranks with an outlying local gradient norm are shown."""
