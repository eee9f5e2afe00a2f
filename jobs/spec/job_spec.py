"""The spec of a training job: its sections, what they demand of each other, and how it is loaded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator

from guard.config import Config, GuardConfig
from guard.faults.config import FaultConfig
from jobs.spec.data import DataSpec
from jobs.spec.errors import SpecError, SpecProblem, did_you_mean, problems_of, related
from jobs.spec.language import (
    LANGUAGE,
    GptFields,
    TextFields,
    check_gpt,
    check_text,
    check_unused,
    with_language_defaults,
)
from jobs.spec.load import Document, read_document
from jobs.spec.override import apply_overrides
from jobs.spec.regularize import RegularizeSpec
from jobs.spec.schema import without_empty_sections
from jobs.spec.sections import MetricsSpec, ModelSpec, OptimizerSpec, ScaleSpec, ScheduleSpec, TrainSpec
from jobs.spec.workload_names import BUILTIN, IMPORT_PATH
from jobs.spec.yaml_text import dump_yaml

__all__ = [
    "DataSpec",
    "JobSpec",
    "MetricsSpec",
    "ModelSpec",
    "OptimizerSpec",
    "ScaleSpec",
    "ScheduleSpec",
    "SpecError",
    "SpecProblem",
    "TrainSpec",
    "slug",
]

_NAME = re.compile(r"^[a-z0-9][a-z0-9\-_.]{0,62}$")
_LARGEST_SEED = 2**63 - 1


def _rank_exists(fault: FaultConfig, info: ValidationInfo) -> FaultConfig:
    scale = info.data.get("scale")
    if scale is not None and fault.rank is not None and fault.rank >= scale.workers:
        allowed = f"0..{scale.workers - 1}" if scale.workers > 1 else "0"
        raise related(
            f"no such rank: scale.workers is {scale.workers}, so ranks are {allowed}",
            field="rank",
            value=fault.rank,
        )
    return fault


def _can_be_poisoned(fault: FaultConfig, info: ValidationInfo) -> FaultConfig:
    if fault.kind == "poisoned_batch" and info.data.get("workload") == LANGUAGE:
        raise related(
            "does nothing to text, whose tokens are whole numbers",
            field="kind",
            value=fault.kind,
            suggestion="write nan_loss or scaled_gradient",
        )
    return fault


def _fires(fault: FaultConfig, info: ValidationInfo) -> FaultConfig:
    train = info.data.get("train")
    if train is not None and train.max_steps is not None and fault.step >= train.max_steps:
        raise related(
            f"never fires: training ends after train.max_steps = {train.max_steps}",
            field="step",
            value=fault.step,
        )
    return fault


class JobSpec(Config):
    """One training job, complete; ``load`` and ``from_dict`` name everything that is wrong at once."""

    name: str = Field(default="job", json_schema_extra={"pattern": _NAME.pattern})
    """Label in metrics and folder under ``storage``. Default: the name of the spec file."""

    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED)
    """Fixes initial weights, order of the data and augmentation."""

    workload: str = "vision"
    """What is trained: ``vision``, ``language``, or ``package.module:Class`` for your own: a class that
    fulfils ``jobs.workloads.base.Workload``, in a module beside the spec or in one that is installed.
    ``jobs/examples/own_workload`` is one."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Free fields for a workload of your own, which finds them in ``spec.options``; the built-in ones have
    none."""

    storage: str = Field(default="runs", min_length=1)
    """Folder for the files of jobs; those of this job go to ``<storage>/<name>/``."""

    resume: Literal["manual", "auto"] = "manual"
    """What a job of this name that is there already means. ``auto``: continue it, and leave a finished one
    alone. ``manual``: the command says so, with ``--resume`` or ``--overwrite``."""

    scale: ScaleSpec = Field(default_factory=ScaleSpec)
    """Workers and resources."""

    model: ModelSpec = Field(default_factory=ModelSpec)
    """The network."""

    data: DataSpec = Field(default_factory=DataSpec, validate_default=True)
    """The data set and the batch."""

    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    """The optimizer."""

    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)
    """The learning-rate schedule."""

    regularize: RegularizeSpec = Field(default_factory=RegularizeSpec)
    """Penalties, dropout and noise."""

    train: TrainSpec = Field(default_factory=TrainSpec)
    """Length of the training, evaluation, checkpoints."""

    preflight: Literal["warn", "strict", "off"] = "warn"
    """Before the first step, one batch goes through the model: ``warn`` reports a network that explodes,
    vanishes, is dead or overflows; ``strict`` does not train it; ``off`` does not look."""

    guard: GuardConfig = Field(default_factory=GuardConfig)
    """The gradient guard."""

    faults: tuple[
        Annotated[
            FaultConfig,
            AfterValidator(_rank_exists),
            AfterValidator(_fires),
            AfterValidator(_can_be_poisoned),
        ],
        ...,
    ] = ()
    """Faults to inject, for drills and tests of the guard."""

    metrics: MetricsSpec = Field(default_factory=MetricsSpec)
    """The Prometheus endpoint."""

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Reads a YAML or JSON file and applies ``field.path=value`` overrides.

        Raises:
            SpecError: with every problem of the file and of the overrides.
        """
        document = read_document(Path(path))
        problems = apply_overrides(document, overrides, cls)
        if document.data.get("name") is None:
            document.data["name"] = slug(Path(path).stem)
        return cls._validated(document, problems)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Validates a spec that is already parsed.

        Raises:
            SpecError: with everything that is wrong with it.
        """
        return cls._validated(Document(dict(data)), [])

    @classmethod
    def _validated(cls, document: Document, problems: list[SpecProblem]) -> Self:
        # As JSON, because there strict means what it says: true is no number, and a list may be a tuple.
        data = without_empty_sections(json.loads(json.dumps(document.data, default=str)), cls)
        data = with_language_defaults(data)
        try:
            spec = cls.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            raise SpecError([*problems, *problems_of(error, cls, data, document.where)]) from None
        if problems:
            raise SpecError(problems)
        return spec

    def to_yaml(self) -> str:
        """The spec with all its fields as YAML; loading it gives an equal spec."""
        return dump_yaml(self.model_dump(mode="json"))

    @property
    def job_dir(self) -> Path:
        """The folder of the job's files."""
        return Path(self.storage).expanduser() / self.name

    @property
    def checkpoint_place(self) -> str | Path:
        """The folder or URL of the job's checkpoints."""
        url = self.train.checkpoint_storage
        if url is None:
            return self.job_dir / "checkpoints"
        base, query, options = url.partition("?")
        return f"{base.rstrip('/')}/{self.name}/checkpoints{query}{options}"

    def absolute(self) -> Self:
        """The same spec with absolute folders, for workers that run in another working directory."""
        named = {name: getattr(self.data, name) for name in ("root", "path", "tokenizer")}
        folders = {name: path and str(Path(path).expanduser().absolute()) for name, path in named.items()}
        storage = str(Path(self.storage).expanduser().absolute())
        return self.model_copy(update={"storage": storage, "data": self.data.model_copy(update=folders)})

    def total_steps(self, n_train: int) -> int:
        """Optimizer steps of the whole run over a training set of ``n_train`` samples.

        Raises:
            SpecError: the batch does not fit the training set, or the warm-up does not fit the run.
        """
        batch = self.data.batch_size
        if batch > n_train:
            message = f"is more than the {n_train} training samples: set at most {n_train}"
            raise SpecError([SpecProblem("data.batch_size", batch, message)])
        train = self.train
        in_epochs = None if train.epochs is None else train.epochs * (n_train // batch)
        total = min(steps for steps in (in_epochs, train.max_steps) if steps is not None)
        wrong = self.schedule.too_long(total)
        if wrong is not None:
            field, message = wrong
            raise SpecError([SpecProblem(f"schedule.{field}", getattr(self.schedule, field), message)])
        return total

    @field_validator("name")
    @classmethod
    def _fits_label_and_folder(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            message = "must begin with a-z or 0-9, go on with these or - _ . and have at most 63 characters"
            raise related(message, value=value, suggestion=f"write {slug(value)}")
        return value

    @field_validator("workload")
    @classmethod
    def _known_workload(cls, value: str) -> str:
        if ":" in value and not IMPORT_PATH.fullmatch(value):
            raise ValueError("is not an import path: write package.module:Class")
        if ":" not in value and value not in BUILTIN:
            raise related(
                f"must be {' or '.join(BUILTIN)}, or your own class as package.module:Class",
                value=value,
                suggestion=did_you_mean(value, BUILTIN),
            )
        return value

    @field_validator("options")
    @classmethod
    def _only_for_own_workloads(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if value and info.data.get("workload") in BUILTIN:
            raise ValueError(f"is for a workload of your own; {info.data['workload']} takes none: remove it")
        return value

    @field_validator("storage")
    @classmethod
    def _is_a_folder(cls, value: str) -> str:
        if "://" in value:
            raise ValueError("is a URL: storage is a folder that every worker sees, such as runs")
        return value

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: ModelSpec, info: ValidationInfo) -> ModelSpec:
        if info.data.get("workload") == LANGUAGE:
            check_gpt(value)
        if info.data.get("workload") != "vision":
            return value  # what the name means is up to the workload
        check_unused(value, GptFields, "vision")
        from jobs.torchvision_compat import classification_models

        known = classification_models()
        if value.name not in known:
            suggestion = did_you_mean(value.name, known)
            message = "must be a torchvision classification model, such as resnet18"
            raise related(message, field="name", value=value.name, suggestion=suggestion)
        return value

    @field_validator("data")
    @classmethod
    def _of_this_workload(cls, value: DataSpec, info: ValidationInfo) -> DataSpec:
        if info.data.get("workload") == LANGUAGE:
            check_text(value)
        if info.data.get("workload") == "vision":
            check_unused(value, TextFields, "vision")
        return value

    @field_validator("data")
    @classmethod
    def _equal_shares(cls, value: DataSpec, info: ValidationInfo) -> DataSpec:
        scale = info.data.get("scale")
        unit = 1 if scale is None else math.lcm(*scale.world_sizes)
        if scale is None or value.batch_size % unit == 0:
            return value
        nearest = max(1, round(value.batch_size / unit)) * unit
        elastic = ", for all numbers of workers down to scale.min_workers" if unit > scale.workers else ""
        raise related(
            f"must be a multiple of scale.workers = {scale.workers}{elastic}, so that all shares are equal",
            field="batch_size",
            value=value.batch_size,
            suggestion=f"write {nearest}",
        )

    @field_validator("train")
    @classmethod
    def _equal_parts(cls, value: TrainSpec, info: ValidationInfo) -> TrainSpec:
        scale, data = info.data.get("scale"), info.data.get("data")
        if scale is None or data is None:
            return value
        shares = [data.batch_size // workers for workers in scale.world_sizes]
        share = next((share for share in shares if share % value.micro_batches), None)
        if share is None:
            return value
        raise related(
            f"must divide a worker's share of the batch, {share} samples",
            field="micro_batches",
            value=value.micro_batches,
        )

    @field_validator("guard")
    @classmethod
    def _can_be_deferred(cls, value: GuardConfig, info: ValidationInfo) -> GuardConfig:
        """What comes after each applied step must know at once that it was applied."""
        train, regularize = info.data.get("train"), info.data.get("regularize")
        optimizer = info.data.get("optimizer")
        if value.mode != "deferred" or train is None or regularize is None:
            return value
        reasons = {
            "train.ema_decay": train.ema_decay is not None,
            "train.precision fp16": train.precision == "fp16",
            "regularize.l1": regularize.l1 > 0,
            "regularize.l2": regularize.l2 > 0,
            f"guard.clip.kind {value.clip.kind}": value.clip.kind not in ("auto", "norm", "off"),
            "guard.on_suspect clip": value.on_suspect == "clip",
            "optimizer.name muon": optimizer is not None and optimizer.name == "muon",
        }
        found = [name for name, there in reasons.items() if there]
        if found:
            raise related(
                f"does not go with {' and '.join(found)}",
                field="mode",
                value=value.mode,
                suggestion="write exact",
            )
        return value

    @field_validator("train")
    @classmethod
    def _longer_than_schedule(cls, value: TrainSpec, info: ValidationInfo) -> TrainSpec:
        schedule = info.data.get("schedule")
        if schedule is None or value.max_steps is None or schedule.too_long(value.max_steps) is None:
            return value
        needed = {
            "schedule.warmup_steps": schedule.warmup_steps,
            "schedule.decay_steps": schedule.decay_steps,
        }
        sizes = " and ".join(f"{name} = {steps}" for name, steps in needed.items() if steps)
        raise related(f"must be more than {sizes}", field="max_steps", value=value.max_steps)


def slug(text: str) -> str:
    """A job name made from any text: lower case, everything unusual a hyphen."""
    name = re.sub(r"[^a-z0-9\-_.]+", "-", text.lower()).strip("-_.")[:63]
    return name.rstrip("-_.") or "job"
