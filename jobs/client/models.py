"""The documents of a job client and of the HTTP API.

Times are Unix seconds. A number that JSON cannot hold is the string nan, inf or -inf.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import ENDED as ENDED

Status = Literal[
    "queued", "waiting", "starting", "running", "stopping", "stopped", "succeeded", "failed", "halted"
]
STATUSES: tuple[Status, ...] = get_args(Status)
Recorded = Literal["metrics.jsonl", "incidents.jsonl", "checkpoints.jsonl", "result.json", "samples.txt"]
"""Files of a job that can be downloaded."""
MOST_AT_ONCE = 1000
"""Incidents of an answer: each may have some kB of evidence."""
Number = float | Literal["nan", "inf", "-inf"]


class Document(BaseModel):
    """Read-only; a field that a newer service adds is no error."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), use_attribute_docstrings=True
    )


class Progress(Document):
    """The newest recorded step."""

    step: int
    attempt: int
    total_steps: int | None = None
    """None where the spec counts in epochs."""
    loss: Number | None = None
    grad_norm: Number | None = None
    learning_rate: Number | None = None
    time: float | None = None


class AttemptInfo(Document):
    """One submission to Ray."""

    number: int
    submission_id: str
    started: float
    ended: float | None = None
    outcome: str | None = None
    message: str = ""


class JobInfo(Document):
    """A job as it was when it was fetched. What a listing omits is None."""

    id: str
    name: str
    status: Status
    reason: str = ""
    """What it waits for, or why it ended."""
    exit_code: int | None = None
    """None while it runs and when it was stopped."""
    priority: int = 0
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    submitted_by: str = ""
    adopted: bool = False
    """Whether it was submitted to Ray without the service."""
    attempt: int = 1
    restarts: int = 0
    max_restarts: int = 0
    folder: str | None = None
    tags: list[str] = []
    progress: Progress | None = None
    spec: dict[str, Any] | None = None
    env: dict[str, str] | None = None
    result: dict[str, Any] | None = None
    """How it ended, with its figures."""
    attempts: list[AttemptInfo] | None = None


class JobList(Document):
    """Some jobs, the newest first."""

    jobs: list[JobInfo]
    next_cursor: str | None = None
    """Gives the next page; None on the last one."""


class Event(Document):
    """Something that happened to a job: a change of its status, an incident, a note."""

    seq: int
    job: str
    time: float
    kind: str
    level: str
    text: str
    data: dict[str, Any] = {}


class CheckpointInfo(Document):
    """A checkpoint of a job."""

    name: str
    step: int | None = None
    health: str
    """``good``, ``candidate``, or ``damaged``."""
    created: float | None = None
    size: int | None = None
    metrics: dict[str, Number] = {}
    problem: str | None = None


class Series(Document):
    """Metrics over the attempts of a job; one list for each name, all of the same length."""

    rows: int
    """How many there are; more than are returned where the series was thinned."""
    columns: dict[str, list[Any]]


class PackageInfo(Document):
    """A working directory that was uploaded."""

    id: str
    size: int
    files: int


Priority = Annotated[int, Field(ge=-1000, le=1000)]
Restarts = Annotated[int, Field(ge=0, le=100)]


class Submission(BaseModel):
    """A job to submit."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    spec: dict[str, Any]
    """The job's spec, as in its YAML file."""
    priority: Priority = 0
    """The higher, the sooner, where jobs wait."""
    max_restarts: Restarts = 3
    """How often it is started again after its driver or Ray's head died."""
    env: dict[str, str] = {}
    """Environment variables of the job: the way for secrets."""
    working_dir: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Id of a package that was uploaded before."""


class CloneRequest(BaseModel):
    """A job like another one."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    set: list[str] = []
    """Changes of the spec, as in ``optimizer.lr=0.1``."""
    priority: Priority | None = None
    max_restarts: Restarts | None = None
