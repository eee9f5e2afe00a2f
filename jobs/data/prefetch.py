"""Prefetches the samples that the training will request next, in processes of torch's DataLoader.

The order is the cursor's: the processes get requests, and their answers come back in that order. When the
training continues elsewhere, because the cursor was rolled back or the test set is due, prefetched samples
are dropped, and the same processes continue at the new place.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import cast

from torch import Generator
from torch.utils.data import DataLoader, Dataset, Sampler

from jobs.data.cursor import DataCursor, shard
from jobs.data.errors import SampleError
from jobs.data.reader import ImageReader, ReadRequest, Samples

_START = "spawn"  # a fork of a process with the threads of Ray, gloo and CUDA may hang
_PER_WORKER = 2
Plan = Callable[[], Iterator[ReadRequest]]


class Prefetcher:
    """Answers requests from prefetched samples, in the order of a plan, and reads others directly.

    Args:
        reader: does the reading; a copy of it goes to every process, once.
        workers: processes.
        plan: the requests to come, from the present batch on.
        parts: requests of a batch; the present batch may be requested again.
        pin: whether samples come in page-locked memory, for a GPU.
    """

    def __init__(self, reader: ImageReader, *, workers: int, plan: Plan, parts: int, pin: bool) -> None:
        self._reader, self._plan, self._parts = reader, plan, parts
        self._queue = _Queue()
        self._loader = DataLoader(
            _Reading(reader),
            batch_size=None,
            sampler=self._queue,
            num_workers=workers,
            persistent_workers=True,
            prefetch_factor=_PER_WORKER,
            multiprocessing_context=_START,
            worker_init_fn=_end_with_parent,
            pin_memory=pin,
            generator=Generator(),  # else it draws from the global one, which the training uses
        )
        self._answers: Iterator[Samples | SampleError] | None = None
        self._held: deque[tuple[ReadRequest, Samples]] = deque(maxlen=parts)

    def read(self, request: ReadRequest) -> Samples:
        """The samples; waits for them.

        Raises:
            SampleError: as the reader does.
        """
        held = next((samples for known, samples in self._held if known.same(request)), None)
        if held is not None:
            return held  # the guard computes the batch again
        if not self._queue.next_is(request) and not self._seek(request):
            return self._reader.read(request)
        samples = self._answer()
        self._held.append((request, samples))
        return samples

    def all(self, requests: list[ReadRequest]) -> Iterator[Samples]:
        """All requested samples, in order."""
        self._begin(iter(requests))
        for _ in requests:
            yield self._answer()

    def close(self) -> None:
        """Ends the processes."""
        self._answers = None
        del self._loader  # without references it ends them
        self._held.clear()

    def _seek(self, request: ReadRequest) -> bool:
        """Starts to prefetch where the plan has this request; False if it is not near."""
        plan = self._plan()
        for planned in itertools.islice(plan, 2 * self._parts):
            if planned.same(request):
                self._begin(itertools.chain([planned], plan))
                return True
        return False

    def _begin(self, requests: Iterator[ReadRequest]) -> None:
        self._queue.requests = requests
        self._answers = iter(self._loader)

    def _answer(self) -> Samples:
        if self._answers is None:
            raise RuntimeError("nothing is being read")
        self._queue.sent.popleft()
        try:
            answer = next(self._answers)
        except (OSError, EOFError) as error:  # the channel of the samples went with the process
            _collect_dead(timeout=5.0)
            raise RuntimeError(f"a prefetching process has died: {error}") from error
        if isinstance(answer, SampleError):
            raise answer
        return answer


def plan_of(cursor: DataCursor, rank: int, world_size: int, micro_batches: int) -> Plan:
    """The requests of a rank if nothing comes between, from the cursor's last batch on."""

    def plan() -> Iterator[ReadRequest]:
        for batch in cursor.upcoming():
            own = shard(batch.ids, rank, world_size)
            size = len(own) // micro_batches
            for start in range(0, len(own), size):
                yield ReadRequest("train", batch.epoch, own[start : start + size])

    return plan


def _collect_dead(timeout: float) -> None:
    """Waits for the first child to end. Until it is collected, torch raises an error of its own about it
    between any two statements, even while the traceback of ours is being printed."""
    children = {child.sentinel: child for child in multiprocessing.active_children()}
    for sentinel in wait(list(children), timeout):
        children[cast(int, sentinel)].join(timeout)


def _end_with_parent(_: int) -> None:
    """Runs in each process; torch's own watch misses a parent that died while the process was starting."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Queue(Sampler[ReadRequest]):
    """Gives the loader the next request, and remembers those without an answer yet."""

    def __init__(self) -> None:
        self.requests: Iterator[ReadRequest] = iter(())
        self.sent: deque[ReadRequest] = deque()

    def __iter__(self) -> Iterator[ReadRequest]:
        self.sent.clear()
        for request in self.requests:
            self.sent.append(request)
            yield request

    def next_is(self, request: ReadRequest) -> bool:
        return bool(self.sent) and self.sent[0].same(request)


class _Reading(Dataset[Samples | SampleError]):
    """Runs in each process. A broken image is an answer: torch would add a traceback to an exception."""

    def __init__(self, reader: ImageReader) -> None:
        self._reader = reader

    def __getitem__(self, request: ReadRequest) -> Samples | SampleError:
        try:
            return self._reader.read(request)
        except SampleError as error:
            return error
