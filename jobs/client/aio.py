"""The job client for asyncio: the same calls, made in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from jobs.client.client import Job, JobClient
from jobs.client.models import CheckpointInfo, Event, Series
from jobs.spec.job_spec import JobSpec

T = TypeVar("T")


class AsyncJobClient:
    """``JobClient`` with awaitable methods; see there for arguments and errors. Make one with ``connect``."""

    def __init__(self, client: JobClient) -> None:
        self.sync = client

    @classmethod
    async def connect(cls, address: str | None = None, *, token: str | None = None) -> Self:
        return cls(await asyncio.to_thread(JobClient, address, token=token))

    async def submit(self, spec: JobSpec, **options: Any) -> Job:
        """Submits a job; the options are those of ``JobClient.submit``."""
        return await asyncio.to_thread(self.sync.submit, spec, **options)

    async def get(self, job_id: str) -> Job:
        return await asyncio.to_thread(self.sync.get, job_id)

    async def list(
        self, *, status: str | Sequence[str] = (), name: str | None = None, limit: int | None = None
    ) -> list[Job]:
        return await asyncio.to_thread(self.sync.list, status=status, name=name, limit=limit)

    async def stop(self, job_id: str) -> None:
        await asyncio.to_thread(self.sync.stop, job_id)

    async def checkpoint(self, job_id: str) -> None:
        """Asks a running job to save a checkpoint now."""
        await asyncio.to_thread(self.sync.checkpoint, job_id)

    async def resume(self, job_id: str) -> Job:
        return await asyncio.to_thread(self.sync.resume, job_id)

    async def delete(self, job_id: str, *, files: bool = False) -> None:
        await asyncio.to_thread(self.sync.delete, job_id, files=files)

    async def clone(self, job_id: str, changes: Sequence[str] = (), *, priority: int | None = None) -> Job:
        return await asyncio.to_thread(self.sync.clone, job_id, changes, priority=priority)

    async def wait(self, job_id: str, *, timeout_s: float | None = None, progress: bool = False) -> Job:
        return await asyncio.to_thread(self.sync.wait, job_id, timeout_s=timeout_s, progress=progress)

    def logs(self, job_id: str, *, follow: bool = False, offset: int = 0) -> AsyncIterator[str]:
        return _pumped(lambda: self.sync.logs(job_id, follow=follow, offset=offset))

    def follow(self, job_id: str, *, after: int = 0) -> AsyncIterator[Event]:
        return _pumped(lambda: self.sync.follow(job_id, after=after))

    async def incidents(self, job_id: str) -> Sequence[dict[str, Any]]:
        return await asyncio.to_thread(self.sync.incidents, job_id)

    async def metrics(self, job_id: str, *, points: int = 2000) -> Series:
        return await asyncio.to_thread(self.sync.metrics, job_id, points=points)

    async def checkpoints(self, job_id: str) -> Sequence[CheckpointInfo]:
        return await asyncio.to_thread(self.sync.checkpoints, job_id)

    async def report(self, job_id: str) -> str:
        return await asyncio.to_thread(self.sync.report, job_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.sync.close)


async def _pumped(start: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
    """Items of an iterator that blocks, each awaited in a thread of this stream."""
    end = object()
    with_own_thread = ThreadPoolExecutor(1, thread_name_prefix="job-stream")
    loop = asyncio.get_running_loop()
    try:
        items = await loop.run_in_executor(with_own_thread, start)
        while (item := await loop.run_in_executor(with_own_thread, next, items, end)) is not end:
            yield cast(T, item)
    finally:
        with_own_thread.shutdown(wait=False)
