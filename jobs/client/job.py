"""A job in the hand of whoever asked about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jobs.client.models import ENDED, CheckpointInfo, Event, JobInfo, Progress, Series, Status

if TYPE_CHECKING:
    from jobs.client.client import JobClient


class Job:
    """A job, as it was when it was asked about (``info``), and what can be done with it."""

    def __init__(self, info: JobInfo, client: JobClient) -> None:
        self.info = info
        self._client = client

    def __repr__(self) -> str:
        return f"Job(id={self.id!r}, status={self.status!r})"

    @property
    def id(self) -> str:
        """Also the name of its folder, and its label in the metrics."""
        return self.info.id

    @property
    def name(self) -> str:
        """The name in its spec."""
        return self.info.name

    @property
    def status(self) -> Status:
        """How it was."""
        return self.info.status

    @property
    def exit_code(self) -> int | None:
        """None while it runs and when it was stopped."""
        return self.info.exit_code

    @property
    def message(self) -> str:
        """What it waits for, or why it ended."""
        return self.info.reason

    @property
    def progress(self) -> Progress | None:
        """The newest step on record."""
        return self.info.progress

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless somebody resumes it."""
        return self.status in ENDED

    def refresh(self) -> Job:
        """The job as it is now."""
        return self._client.get(self.id)

    def wait(self, timeout_s: float | None = None, *, progress: bool = False) -> Job:
        """This job once it has ended; see ``JobClient.wait``."""
        return self._client.wait(self.id, timeout_s=timeout_s, progress=progress)

    def logs(self, *, follow: bool = False, offset: int = 0) -> Iterator[str]:
        """Its log; see ``JobClient.logs``."""
        return self._client.logs(self.id, follow=follow, offset=offset)

    def follow(self, *, after: int = 0) -> Iterator[Event]:
        """What happens to it; see ``JobClient.follow``."""
        return self._client.follow(self.id, after=after)

    def stop(self) -> None:
        """Asks it to save its state and end."""
        self._client.stop(self.id)

    def checkpoint(self) -> None:
        """Asks it to save a checkpoint now; see ``JobClient.checkpoint``."""
        self._client.checkpoint(self.id)

    def resume(self) -> Job:
        """Continues it from its last good checkpoint."""
        return self._client.resume(self.id)

    def clone(self, changes: Sequence[str] = ()) -> Job:
        """Hands in a job like it; see ``JobClient.clone``."""
        return self._client.clone(self.id, changes)

    def delete(self, *, files: bool = False) -> None:
        """Forgets it; see ``JobClient.delete``."""
        self._client.delete(self.id, files=files)

    def incidents(self) -> list[dict[str, Any]]:
        """What the guard acted on."""
        return self._client.incidents(self.id)

    def metrics(self, *, points: int = 2000) -> Series:
        """Its metrics; see ``JobClient.metrics``."""
        return self._client.metrics(self.id, points=points)

    def checkpoints(self) -> list[CheckpointInfo]:
        """What it can return to."""
        return self._client.checkpoints(self.id)

    def report(self) -> str:
        """Its report as HTML."""
        return self._client.report(self.id)
