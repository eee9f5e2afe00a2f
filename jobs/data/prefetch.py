"""Reads what the training will ask for next, in processes of torch's DataLoader.

The order stays the cursor's: the processes are told what to read, and what they read comes back in that
order. When the training goes elsewhere, because the cursor was rewound or the test set is due, what was read
for nothing is thrown away, and the same processes begin at the new place.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Generator
from torch.utils.data import DataLoader, Dataset, Sampler

from jobs.data.cursor import DataCursor, shard
from jobs.data.errors import SampleError
from jobs.data.reader import ReadRequest, Samples

_START = "spawn"  # a fork of a process with the threads of Ray, gloo and CUDA may hang
_PER_WORKER = 2


class Reads(Protocol):
    """Turns a request into samples; sent to the processes."""

    def read(self, request: ReadRequest) -> Samples: ...


class Prefetcher:
    """Answers requests from what was read ahead, in the order of a plan, and reads itself what was not.

    Args:
        reader: does the reading; a copy of it goes to every process, once.
        workers: processes.
        plan: what will be asked for, from the batch on that is under way.
        parts: requests of a batch; a batch may be asked for again while it is under way.
        pin: whether samples come in page-locked memory, for a GPU.
    """

    def __init__(
        self, reader: Reads, *, workers: int, plan: Callable[[], Iterator[ReadRequest]], parts: int, pin: bool
    ) -> None:
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
            generator=Generator(),  # else it draws from the global one, which training owns
        )
        self._answers: Iterator[Samples | SampleError] | None = None
        self._held: deque[tuple[ReadRequest, Samples]] = deque(maxlen=parts)

    def read(self, request: ReadRequest) -> Samples:
        """The samples; waits until they are there.

        Raises:
            SampleError: as the reader does.
        """
        held = next((samples for known, samples in self._held if known.same(request)), None)
        if held is not None:
            return held  # the guard has a batch computed once more
        if not self._queue.next_is(request) and not self._seek(request):
            return self._reader.read(request)
        samples = self._answer()
        self._held.append((request, samples))
        return samples

    def all(self, requests: list[ReadRequest]) -> Iterator[Samples]:
        """Everything that is asked for, in order."""
        self._begin(iter(requests))
        for _ in requests:
            yield self._answer()

    def close(self) -> None:
        """Ends the processes."""
        self._answers = None
        del self._loader  # it ends them when nobody holds it any more
        self._held.clear()

    def _seek(self, request: ReadRequest) -> bool:
        """Begins to read ahead where the plan has this request; false if that is not near."""
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
        self._queue.taken()
        try:
            answer = next(self._answers)
        except (OSError, EOFError) as error:  # what a sample travels through went with the process
            raise RuntimeError(f"a process that reads ahead has died: {error}") from error
        if isinstance(answer, SampleError):
            raise answer
        return answer


def plan_of(
    cursor: DataCursor, rank: int, world_size: int, micro_batches: int
) -> Callable[[], Iterator[ReadRequest]]:
    """What a rank will ask for if nothing comes between, from the batch on that the cursor gave out last."""

    def plan() -> Iterator[ReadRequest]:
        for batch in cursor.upcoming():
            own = shard(batch.ids, rank, world_size)
            size = len(own) // micro_batches
            for start in range(0, len(own), size):
                yield ReadRequest("train", batch.epoch, own[start : start + size])

    return plan


def _end_with_parent(_: int) -> None:
    """Runs in each process; torch's own watch misses a parent that died while the process was starting."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Queue(Sampler[ReadRequest]):
    """Hands the loader the next request, and remembers those whose answers are still to come."""

    def __init__(self) -> None:
        self.requests: Iterator[ReadRequest] = iter(())
        self._sent: deque[ReadRequest] = deque()

    def __iter__(self) -> Iterator[ReadRequest]:
        self._sent.clear()
        for request in self.requests:
            self._sent.append(request)
            yield request

    def next_is(self, request: ReadRequest) -> bool:
        return bool(self._sent) and self._sent[0].same(request)

    def taken(self) -> None:
        self._sent.popleft()


class _Reading(Dataset[Samples | SampleError]):
    """What a process runs; a broken image is an answer, for to an exception torch adds a traceback."""

    def __init__(self, reader: Reads) -> None:
        self._reader = reader

    def __getitem__(self, request: ReadRequest) -> Samples | SampleError:
        try:
            return self._reader.read(request)
        except SampleError as error:
            return error
