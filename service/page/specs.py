"""Routes of the submit form: check a spec, list the examples, copy the spec of a job."""

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from jobs.client.models import Submission
from jobs.spec.errors import SpecError, SpecProblem, single
from jobs.spec.job_spec import JobSpec
from jobs.spec.load import Document, parse_document
from jobs.spec.masking import MASKED, masked_spec
from jobs.spec.yaml_text import dump_yaml
from service.api.admission import LARGEST_SPEC, row_of
from service.api.auth import Reader, Submitter
from service.api.context import Context, Service
from service.api.job_routes import COMMON, JobId
from service.api.problems import Problem, documented, encodable
from service.api.view import shown_env
from service.store import JobRow, WrongState

LABEL = "spec"
_PLACE = re.compile(rf"^{LABEL}:(\d+)(?::(\d+))?$")
router = APIRouter(prefix="/v1", responses=documented(*COMMON))


class SpecText(BaseModel):
    """A spec as text."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(max_length=LARGEST_SPEC)]


class Fault(BaseModel):
    """A problem in a spec."""

    path: str
    """The field, as in ``guard.clip.max_norm``; empty for the whole spec."""
    line: int | None
    """From 1; of the field, or of the section around it."""
    column: int | None = None
    message: str


class SpecCheck(BaseModel):
    """The result of a check: faults, or the spec as data, ready to be submitted."""

    faults: list[Fault]
    spec: dict[str, Any] | None = None
    wants: str = ""
    """The resources it needs."""


class Example(BaseModel):
    """An example spec."""

    name: str
    title: str
    text: str


class Draft(BaseModel):
    """A job as an editable submission, without its secrets."""

    text: str
    priority: int
    max_restarts: int
    env: dict[str, str]
    secrets: list[str]
    """Variables whose values must be entered again."""
    working_dir: str | None


@router.post("/specs/check")
def check(asked: SpecText, service: Service, caller: Submitter) -> SpecCheck:
    """Whether a spec would be accepted; nothing is submitted."""
    document = Document({})
    try:
        document = parse_document(asked.text, LABEL)
        _check_values(document.data)
        row = row_of(service, caller, Submission(spec=document.data))
    except SpecError as error:
        return SpecCheck(faults=[_fault(problem, document) for problem in error.problems])
    except Problem as problem:
        return SpecCheck(faults=[Fault(path="", line=None, message=encodable(problem.detail))])
    return SpecCheck(faults=[], spec=json.loads(json.dumps(document.data)), wants=_wants(row))


@router.get("/specs/examples")
def examples(_: Reader) -> list[Example]:
    """The example specs of the package."""
    return list(_examples())


@router.get("/jobs/{job_id}/draft", responses=documented(404, 409))
def draft(job_id: JobId, service: Service, _: Submitter) -> Draft:
    """A job's spec without its defaults, to be changed and submitted again."""
    job = service.store.get(job_id)
    if job.spec is None:
        raise WrongState(f"the spec of {job_id} is not known here: it cannot be cloned")
    shown = shown_env(job)
    return Draft(
        text=_text(service, job),
        priority=job.priority,
        max_restarts=job.max_restarts,
        env={name: value for name, value in shown.items() if MASKED not in value},
        secrets=[name for name, value in shown.items() if MASKED in value],
        working_dir=job.working_dir,
    )


def _fault(problem: SpecProblem, document: Document) -> Fault:
    """A problem with its place; the message does not repeat the path and the line."""
    line, column = _place(problem, document.where)
    text = str(SpecProblem(problem.path, problem.value, problem.message, problem.suggestion))
    message = text.removeprefix(problem.path).lstrip(": ")
    return Fault(path=encodable(problem.path), line=line, column=column, message=encodable(message))


def _place(problem: SpecProblem, where: Mapping[str, str]) -> tuple[int | None, int | None]:
    parts = problem.path.split(".") if problem.path else []
    around = (where.get(".".join(parts[:end]), "") for end in range(len(parts), 0, -1))
    for place in (problem.where, *around):
        if found := _PLACE.match(place):
            return int(found[1]), int(found[2]) if found[2] else None
    return None, None


def _check_values(data: Any, path: str = "") -> None:
    """Refuses what YAML can hold and a submission cannot, and masked secrets."""
    items = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    for name, value in items:
        here = f"{path}.{name}" if path else str(name)
        if isinstance(value, str) and MASKED in value:
            raise single("is a masked secret: write it again", where="", path=here)
        if isinstance(value, float) and not math.isfinite(value):
            raise single("must be a finite number", where="", path=here)
        _check_values(value, here)


def _wants(row: JobRow) -> str:
    workers = f"{row.workers} worker{'' if row.workers == 1 else 's'}"
    gpus = f", {row.gpus:g} GPU{'' if row.gpus == 1 else 's'}" if row.gpus else ""
    return f"{workers}, {row.cpus:g} CPU{'' if row.cpus == 1 else 's'}{gpus}"


def _text(service: Context, job: JobRow) -> str:
    whole = {**(job.spec or {}), "name": job.name}
    if (storage := Path(str(whole.get("storage", "")))).is_relative_to(service.root):
        whole["storage"] = str(storage.relative_to(service.root))
    try:
        spec = JobSpec.from_dict(whole)
        short = spec.model_dump(mode="json", exclude_defaults=True)
        short = short if JobSpec.from_dict(short) == spec else whole
    except SpecError:  # of an older version: the form shows what is wrong with it now
        short = whole
    return dump_yaml(masked_spec({"name": job.name, **short}))


@cache
def _examples() -> tuple[Example, ...]:
    folder = files("jobs").joinpath("examples")
    found = [item for item in folder.iterdir() if item.name.endswith(".yaml")]
    texts = {item.name.removesuffix(".yaml"): item.read_text("utf-8") for item in found}
    return tuple(Example(name=name, title=_title(text), text=text) for name, text in sorted(texts.items()))


def _title(text: str) -> str:
    """The first sentence of the comment at its head."""
    comment = text.splitlines()[0].lstrip("# ")
    return re.split(r"[.:;](?:\s|$)", comment)[0]
