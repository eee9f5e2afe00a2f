"""The spec of a sweep: a job's spec, the fields that vary, and by which metric trials are compared."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, PositiveInt, Tag, ValidationError, model_validator

from guard.config import Config
from jobs.spec.errors import SpecError, SpecProblem, problems_of, related, single, unknown_field
from jobs.spec.job_spec import JobSpec, slug
from jobs.spec.load import Document, read_document
from jobs.spec.override import apply_overrides
from jobs.spec.schema import annotation_at

DEFAULT_TRIALS = 10
Number = Annotated[int | float, Field(allow_inf_nan=False)]
Choice = int | float | bool | str | None | list[Any] | dict[str, Any]


class RangeSpec(Config):
    """Numbers from ``min`` to ``max``, both included; whole ones where both are."""

    min: Number
    """The smallest."""

    max: Number
    """The largest."""

    scale: Literal["linear", "log"] = "linear"
    """``log``: as many between 0.001 and 0.01 as between 0.01 and 0.1."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max <= self.min:
            raise related(f"must be more than min = {self.min:g}", value=self.max, field="max")
        if self.scale == "log" and self.min <= 0:
            raise related("must be above 0 on a log scale", value=self.min, field="min")
        return self

    def sample(self, rng: random.Random) -> int | float:
        """One number of the range."""
        low, high, log = self.min, self.max, self.scale == "log"
        if isinstance(low, int) and isinstance(high, int):
            if not log:
                return rng.randint(low, high)
            return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))
        drawn = math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
        return min(high, max(low, float(f"{drawn:.4g}")))


def _not_empty(values: list[Choice]) -> list[Choice]:
    if not values:
        raise ValueError("is empty: list the values to try")
    return values


def _kind(value: Any) -> str | None:
    return "list" if isinstance(value, list) else "range" if isinstance(value, dict | RangeSpec) else None


Parameter = Annotated[
    Annotated[RangeSpec, Tag("range")] | Annotated[list[Choice], AfterValidator(_not_empty), Tag("list")],
    Discriminator(
        _kind,
        custom_error_type="parameter",
        custom_error_message="must be a list of values, or a range with min and max",
    ),
]


class HalvingSpec(Config):
    """Ends trials early that are worse than the others after as many evaluations (ASHA: Li et al., "A System
    for Massively Parallel Hyperparameter Tuning", 2020)."""

    grace: PositiveInt = 1
    """Evaluations that each trial gets at least."""

    reduction: Annotated[int, Field(ge=2)] = 3
    """One in so many continues from each rung: after ``grace`` evaluations, ``grace`` x ``reduction``, and so
    on."""


class SweepSpec(Config):
    """One sweep."""

    name: str = Field(default="sweep", pattern=r"^[a-z0-9][a-z0-9\-_.]{0,50}$")
    """Folder under the ``storage`` of the job's spec; each trial is a job in it. Default: the name of the
    file."""

    base: str | dict[str, Any]
    """The job's spec: a file, relative to this one, or the spec itself."""

    parameters: dict[str, Parameter] = Field(min_length=1)
    """Fields of the job's spec by their dotted names, each with a list of values or a range: ``min``, ``max``
    and ``scale``."""

    trials: PositiveInt | None = None
    """Jobs to train, drawn at random. Default: each combination where all parameters are lists, else 10."""

    seed: int = Field(default=0, ge=0)
    """Determines the values that are drawn."""

    metric: str = Field(default="min:test_loss", pattern=r"^(min|max):\w+$")
    """A metric of the evaluations by which trials are compared, such as ``max:test_accuracy``."""

    early_stopping: HalvingSpec | None = Field(default_factory=HalvingSpec)
    """``null``: each trial trains to its end."""

    concurrent: PositiveInt | None = None
    """Trials that train at a time. Default: as many as fit on the cluster."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a YAML or JSON file; a relative ``base`` is then relative to it.

        Raises:
            SpecError: with every problem of the file.
        """
        document = read_document(path)
        keys = document.data.keys()
        if not {"base", "parameters"} & keys and keys & JobSpec.model_fields.keys():
            message = "is the spec of a job; a sweep names it as base, and the fields that vary as parameters"
            raise single(message, where=str(path))
        document.data.setdefault("name", slug(path.stem)[:50])
        try:
            spec = cls.model_validate_json(json.dumps(document.data), strict=True)
        except ValidationError as error:
            raise SpecError(problems_of(error, cls, document.data, document.where)) from None
        if unknown := list(spec._unknown(document)):
            raise SpecError(unknown)
        if isinstance(spec.base, str):
            spec = spec.model_copy(update={"base": str(path.parent / spec.base)})
        return spec

    def _unknown(self, document: Document) -> Iterator[SpecProblem]:
        for name in self.parameters:
            if annotation_at(JobSpec, name.split(".")) is None:
                field = f"parameters.{name}"
                yield SpecProblem(
                    field, None, *unknown_field(JobSpec, name.split(".")), document.source_of(field)
                )

    @property
    def maximize(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric.startswith("max:")

    @property
    def metric_name(self) -> str:
        """As the evaluations have it."""
        return self.metric.partition(":")[2]

    def drawn(self) -> list[dict[str, Any]]:
        """The values of each trial; the first ones are the same whatever ``trials`` is."""
        lists = [values for values in self.parameters.values() if isinstance(values, list)]
        if self.trials is None and len(lists) == len(self.parameters):
            return [dict(zip(self.parameters, row, strict=True)) for row in itertools.product(*lists)]
        rng = random.Random(self.seed)
        return [
            {name: _draw(values, rng) for name, values in self.parameters.items()}
            for _ in range(self.trials or DEFAULT_TRIALS)
        ]

    def jobs(self) -> list[JobSpec]:
        """The spec of each trial.

        Raises:
            SpecError: a drawn value is not valid there; the first trial with one is named.
        """
        drawn = self.drawn()
        width = len(str(len(drawn)))
        return [self._job(number, values, width) for number, values in enumerate(drawn, 1)]

    def _job(self, number: int, values: Mapping[str, Any], width: int) -> JobSpec:
        base = self.base
        data = read_document(Path(base)).data if isinstance(base, str) else json.loads(json.dumps(base))
        document, sets = Document(data), [f"{name}={json.dumps(value)}" for name, value in values.items()]
        problems = apply_overrides(document, sets, JobSpec)
        if problems:
            raise _of_trial(number, sets, problems)
        # All trials of a sweep are in one folder, and each can be continued.
        document.data["storage"] = str(Path(data.get("storage", "runs")) / self.name)
        document.data |= {"name": f"{self.name}-{number:0{width}}", "resume": "auto"}
        try:
            return JobSpec.from_dict(document.data)
        except SpecError as error:
            raise _of_trial(number, sets, error.problems) from None


def _draw(values: RangeSpec | list[Choice], rng: random.Random) -> Any:
    return values.sample(rng) if isinstance(values, RangeSpec) else rng.choice(values)


def _of_trial(number: int, sets: Sequence[str], problems: Sequence[SpecProblem]) -> SpecError:
    where = f"trial {number} ({', '.join(sets)})"
    return SpecError([replace(problem, where=where) for problem in problems])


def no_sweep(path: Path) -> SpecError:
    """That of a folder which another sweep has taken."""
    return single(
        f"{path} holds another sweep: give this one another name, or remove that folder", path="name"
    )
