"""The job client for asyncio: the same calls, made in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from jobs.client.client import JobClient

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(
    method: Callable[Concatenate[JobClient, P], T],
) -> Callable[Concatenate[AsyncJobClient, P], Coroutine[Any, Any, T]]:
    @wraps(method)
    async def call(client: AsyncJobClient, /, *args: P.args, **options: P.kwargs) -> T:
        return await asyncio.to_thread(method, client.sync, *args, **options)

    return call


def _streamed(
    method: Callable[Concatenate[JobClient, P], Iterator[T]],
) -> Callable[Concatenate[AsyncJobClient, P], AsyncIterator[T]]:
    """Items of an iterator that blocks, each awaited in a thread of this stream."""

    @wraps(method)
    async def call(client: AsyncJobClient, /, *args: P.args, **options: P.kwargs) -> AsyncIterator[T]:
        end = object()
        own_thread = ThreadPoolExecutor(1, thread_name_prefix="job-stream")
        loop = asyncio.get_running_loop()
        try:
            items = await loop.run_in_executor(own_thread, partial(method, client.sync, *args, **options))
            while (item := await loop.run_in_executor(own_thread, next, items, end)) is not end:
                yield cast(T, item)
        finally:
            own_thread.shutdown(wait=False)

    return call


class AsyncJobClient:
    """``JobClient`` with awaitable methods; see there for arguments and errors. Make one with ``connect``.

    ``logs`` and ``follow`` are asynchronous iterators.
    """

    def __init__(self, client: JobClient) -> None:
        self.sync = client

    @classmethod
    async def connect(cls, address: str | Path | None = None, *, token: str | None = None) -> Self:
        return cls(await asyncio.to_thread(JobClient, address, token=token))

    submit = _awaited(JobClient.submit)
    get = _awaited(JobClient.get)
    list = _awaited(JobClient.list)
    stop = _awaited(JobClient.stop)
    checkpoint = _awaited(JobClient.checkpoint)
    resume = _awaited(JobClient.resume)
    delete = _awaited(JobClient.delete)
    clone = _awaited(JobClient.clone)
    wait = _awaited(JobClient.wait)
    logs = _streamed(JobClient.logs)
    follow = _streamed(JobClient.follow)
    incidents = _awaited(JobClient.incidents)
    metrics = _awaited(JobClient.metrics)
    checkpoints = _awaited(JobClient.checkpoints)
    report = _awaited(JobClient.report)
    download = _awaited(JobClient.download)
    download_checkpoint = _awaited(JobClient.download_checkpoint)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.sync.close)
