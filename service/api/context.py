"""The service, as its request handlers see it."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from jobs.errors import ENDED
from service.api.callers import Callers
from service.reconcile import Supervisor
from service.reconcile.ray_api import RayApi
from service.store import JobStore, NoSuchJob, Packages, Tokens

ENDED_S = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one caller."""

    requests_per_s: float = 50.0
    burst: int = 200
    wrong_tokens_per_minute: int = 20
    body_bytes: int = 1 << 20
    upload_bytes: int = 50 << 20
    unpacked_bytes: int = 500 << 20
    unpacked_files: int = 20_000
    body_pause_s: float = 20.0
    """Longest pause within a request body."""
    body_s: float = 300.0
    """Longest time for a whole request body."""
    follow_s: float = 3600.0
    """A stream ends after this time; clients reconnect where it ended."""


class EndedJobs:
    """Whether jobs have ended, cached: many clients that follow one job cause one query per ``ENDED_S``."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._known: dict[str, tuple[float, bool]] = {}

    def __call__(self, job_id: str) -> bool:
        asked, ended = self._known.get(job_id, (-1e9, False))
        if time.monotonic() - asked < ENDED_S:
            return ended
        try:
            ended = self._store.get(job_id).state in ENDED
        except NoSuchJob:
            ended = True
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[job_id] = (time.monotonic(), ended)
        return ended


@dataclass(slots=True)
class Context:
    """The service. ``supervisor`` and ``ray`` are None where only the store is served."""

    store: JobStore
    packages: Packages
    tokens: Tokens
    root: Path
    auth: bool
    limits: Limits = field(default_factory=Limits)
    ray: RayApi | None = None
    supervisor: Supervisor | None = None
    checkpoint_urls: tuple[str, ...] = ()
    """Remote checkpoints are read only below these URLs, whatever a spec names."""
    ended: EndedJobs = field(init=False)
    readiness_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    """Of ``/readyz``, which answers while all other threads wait for a locked database."""
    callers: Callers = field(init=False)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self.ended = EndedJobs(self.store)
        self.callers = Callers(self.limits.requests_per_s, self.limits.burst)


async def context_of(request: Request) -> Context:  # async: needs no thread
    return request.app.state.context


Service = Annotated[Context, Depends(context_of)]
