"""The spec of a training job: its sections, and how it is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, field_validator

from guard.config import Config, GuardConfig
from guard.faults.config import FaultConfig
from guard.trackers.config import TrackConfig
from jobs.spec import cross_checks, parallel_checks, workload_checks
from jobs.spec.data import DataSpec
from jobs.spec.errors import SpecError, SpecProblem, line_of, problems_of, related, single
from jobs.spec.huggingface import HUGGINGFACE, with_huggingface_defaults
from jobs.spec.language import with_language_defaults
from jobs.spec.load import Document, read_document
from jobs.spec.notify import NotifySpec
from jobs.spec.odd_characters import hidden_in
from jobs.spec.optim import OptimizerSpec, ScheduleSpec
from jobs.spec.override import apply_overrides
from jobs.spec.parallel import ParallelSpec
from jobs.spec.regularize import RegularizeSpec
from jobs.spec.schema import without_empty_sections
from jobs.spec.sections import MetricsSpec, ModelSpec, ScaleSpec, TrainSpec
from jobs.spec.workload_names import with_tabular_defaults
from jobs.spec.yaml_text import dump_yaml

_NAME = re.compile(r"^[a-z0-9][a-z0-9\-_.]{0,62}$")
_LONGEST_NAME = 255


class JobSpec(Config):
    """One complete training job; ``load`` and ``from_dict`` report everything that is wrong at once."""

    name: str = Field(default="job", json_schema_extra={"pattern": _NAME.pattern})
    """Label in metrics, and folder under ``storage``. Default: the name of the spec file."""

    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Determines the initial weights, the order of the data and the augmentation."""

    workload: Annotated[str, AfterValidator(workload_checks.workload)] = "vision"
    """What is trained: ``vision``, ``language``, ``huggingface``, ``tabular``, or ``package.module:Class``
    for your own: a class that implements ``jobs.workloads.base.Workload``, in a module beside the spec or in
    an installed package. ``jobs/examples/own_workload`` is an example."""

    options: Annotated[dict[str, Any], AfterValidator(workload_checks.options)] = Field(default_factory=dict)
    """Free fields for your own workload, which reads them from ``spec.options``; the built-in workloads have
    none."""

    storage: str = Field(default="runs", min_length=1, max_length=1000)
    """Folder for the files of jobs; those of this job are stored in ``<storage>/<name>/``."""

    resume: Literal["manual", "auto"] = "manual"
    """What to do if a job of this name already exists in ``storage``. ``auto``: resume it, and leave it as it
    is if it has finished. ``manual``: refuse to start, unless the command has ``--resume`` or
    ``--overwrite``."""

    # A validator sees only the fields above its own, so the order of the fields matters.
    scale: ScaleSpec = Field(default_factory=ScaleSpec)
    """Workers and resources."""

    model: Annotated[ModelSpec, AfterValidator(workload_checks.model)] = Field(default_factory=ModelSpec)
    """The network."""

    data: Annotated[
        DataSpec, AfterValidator(workload_checks.data), AfterValidator(cross_checks.equal_shares)
    ] = Field(default_factory=DataSpec, validate_default=True)
    """The data set and the batch."""

    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    """The optimizer."""

    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)
    """The learning-rate schedule."""

    regularize: RegularizeSpec = Field(default_factory=RegularizeSpec)
    """Penalties, dropout and noise."""

    train: Annotated[
        TrainSpec, AfterValidator(cross_checks.micro_batches), AfterValidator(cross_checks.schedule_fits)
    ] = Field(default_factory=TrainSpec)
    """Length of the training, evaluation, checkpoints."""

    parallel: Annotated[ParallelSpec, AfterValidator(parallel_checks.layout)] = Field(
        default_factory=ParallelSpec
    )
    """How the model is divided over the workers."""

    preflight: Literal["warn", "strict", "off"] = "warn"
    """One batch goes through the model before the first step. ``warn``: report a network that explodes,
    vanishes, is dead or overflows. ``strict``: refuse to train it. ``off``: no preflight."""

    guard: Annotated[
        GuardConfig, AfterValidator(cross_checks.deferred), AfterValidator(parallel_checks.guard)
    ] = Field(default_factory=GuardConfig)
    """The gradient guard."""

    faults: tuple[
        Annotated[
            FaultConfig,
            AfterValidator(cross_checks.fault),
            AfterValidator(workload_checks.fault),
            AfterValidator(parallel_checks.fault),
        ],
        ...,
    ] = ()
    """Faults to inject, for drills and tests of the guard."""

    metrics: MetricsSpec = Field(default_factory=MetricsSpec)
    """The Prometheus endpoint."""

    tags: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")], ...] = ()
    """Words by which jobs are found: ``gradguard list --tag night``, ``gradguard stop --tag night``."""

    track: tuple[TrackConfig, ...] = ()
    """Trackers that get figures, incidents and files of the job: TensorBoard, W&B, MLflow, trackio, CSV."""

    notify: tuple[NotifySpec, ...] = ()
    """Who is told when the job starts, is rolled back, halts, fails or ends. ``gradguard notify test SPEC``
    sends each a notice."""

    secrets: tuple[Annotated[str, Field(min_length=2, max_length=80)], ...] = ()
    """More names, with ``*``, of options and variables whose values are shown as stars. Those of names with
    ``key``, ``token``, ``secret``, ``password``, ``credential`` and the like always are."""

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Reads a YAML or JSON file and applies ``field.path=value`` overrides, several or one.

        Raises:
            SpecError: with every problem of the file and of the overrides.
        """
        document = read_document(Path(path))
        several = [overrides] if isinstance(overrides, str) else overrides
        problems = apply_overrides(document, several, cls)
        if document.data.get("name") is None:
            document.data["name"] = slug(Path(path).stem)
        return cls._validated(document, problems)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Validates a spec that is already parsed.

        Raises:
            SpecError: with everything that is wrong with it.
        """
        if not isinstance(data, Mapping):
            raise single(f"a spec is a mapping of fields, such as {{'seed': 0}}, not {type(data).__name__}")
        return cls._validated(Document(dict(data)), [])

    @classmethod
    def _validated(cls, document: Document, problems: list[SpecProblem]) -> Self:
        # As JSON: strict mode then refuses true as a number, but takes a list for a tuple.
        try:
            plain = json.loads(json.dumps(document.data, default=_plain))
        except (ValueError, RecursionError):  # a value that contains itself
            raise single("is nested too deeply to be a spec") from None
        data = without_empty_sections(plain, cls)
        data = with_tabular_defaults(with_huggingface_defaults(with_language_defaults(data)))
        try:
            spec = cls.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            problems = [*problems, *problems_of(error, cls, data, document.where)]
        known = {problem.path for problem in problems}
        for path, value, found in hidden_in(document.data):
            if path not in known:
                place = document.source_of(path)
                problems.append(SpecProblem(path, value, "has a character that is not seen", found, place))
        if problems:
            raise SpecError(sorted(problems, key=line_of))
        return spec

    def to_yaml(self) -> str:
        """All fields as YAML; loading it gives an equal spec."""
        return dump_yaml(self.model_dump(mode="json"))

    @property
    def job_dir(self) -> Path:
        """Folder of the job's files."""
        return Path(self.storage).expanduser() / self.name

    @property
    def checkpoint_place(self) -> str | Path:
        """Folder or URL of the job's checkpoints."""
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
        weights = self.model.weights and str(Path(self.model.weights).expanduser().absolute())
        model = self.model.model_copy(update={"weights": weights, "name": self._model_name()})
        data = self.data.model_copy(update=folders)
        return self.model_copy(update={"storage": storage, "data": data, "model": model})

    def _model_name(self) -> str:
        """A model's folder as an absolute path."""
        folder = Path(self.model.name).expanduser()
        return str(folder.absolute()) if self.workload == HUGGINGFACE and folder.exists() else self.model.name

    def profiled(self, steps: int = 3) -> Self:
        """The same spec with a profile of this many steps, if it has none."""
        if self.train.profile_steps:
            return self
        return self.model_copy(update={"train": self.train.model_copy(update={"profile_steps": steps})})

    def total_steps(self, n_train: int) -> int:
        """Optimizer steps of the whole run over a training set of ``n_train`` samples.

        Raises:
            SpecError: the batch does not fit the training set, or the warm-up does not fit the run.
        """
        batch = self.data.batch_size
        if batch > n_train:
            message = f"is more than the {n_train} training samples: set at most {n_train}"
            raise single(message, path="data.batch_size", value=batch)
        train = self.train
        in_epochs = None if train.epochs is None else train.epochs * (n_train // batch)
        total = min(steps for steps in (in_epochs, train.max_steps) if steps is not None)
        wrong = self.schedule.too_long(total)
        if wrong is not None:
            field, message = wrong
            raise single(message, path=f"schedule.{field}", value=getattr(self.schedule, field))
        return total

    @field_validator("name")
    @classmethod
    def _fits_label_and_folder(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            rule = "must start with a-z or 0-9, continue with these or - _ . and have at most 63 characters"
            raise related(rule, value=value, suggestion=f"write {slug(value)}")
        return value

    @field_validator("storage")
    @classmethod
    def _is_a_folder(cls, value: str) -> str:
        if "://" in value:
            raise ValueError("is a URL: storage is a folder that every worker can access, such as runs")
        if re.search(r"\$\w|\$\{", value):
            raise ValueError("variables are not replaced: write the folder; ~ is your home")
        if not value.isprintable() or max(len(part.encode()) for part in value.split("/")) > _LONGEST_NAME:
            raise ValueError(f"must be printable, each name in it with at most {_LONGEST_NAME} bytes")
        return value


def _plain(value: object) -> object:
    """The Python number of a NumPy one, as ``np.sum`` gives it; a list of an array; else text."""
    to_list = getattr(value, "tolist", None)
    return str(value) if to_list is None else to_list()


def slug(text: str) -> str:
    """A job name made from any text: lower case, other characters become hyphens."""
    name = re.sub(r"[^a-z0-9\-_.]+", "-", text.lower()).strip("-_.")[:63]
    return name.rstrip("-_.") or "job"
