"""Reads the blocks of a stream in Ray tasks before they are needed, and holds those in use.

An execution of Ray Data has no position: it cannot be moved to the sample at which a job resumes, or to which
it is rolled back, but starts again, which takes about a second. So the order is ours, and Ray runs a task for
each block, on the node of the worker that needs it.
"""

from __future__ import annotations

import logging
import tarfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.data.errors import SampleError
from jobs.data.streams.formats import Block, Columns, read_block

_log = logging.getLogger(__name__)

Ids = NDArray[np.int64]
Plan = Callable[[], Iterator[Ids]]
_RECENT = 8
"""Blocks that are held where nothing says which ones come next."""
_NEAR = 64
"""Requests from the plan's beginning, among which the present one is looked for."""


class BlockReader:
    """The blocks of one split.

    Args:
        blocks: to be read, by number.
        sizes: their rows.
        columns: of their content.
    """

    def __init__(self, blocks: tuple[Block, ...], sizes: NDArray[np.int64], columns: Columns) -> None:
        self._blocks, self._sizes, self._columns = blocks, sizes, columns
        self._held: OrderedDict[int, Any] = OrderedDict()
        """Tables, and references to those being read."""
        self._ahead: _Ahead | None = None
        self._start: Callable[[Block, Columns], Any] | None = None
        self._most = 0

    def read_ahead(self, plan: Plan, blocks_of: Callable[[Ids], Ids], *, blocks: int, requests: int) -> None:
        """From now on holds what the plan asks for, and reads it ahead where Ray runs.

        Args:
            plan: the ids of the requests to come, from the present batch on.
            blocks_of: the numbers of the blocks of ids.
            blocks: that are read before a request needs them.
            requests: to come whose blocks are held once they are read.
        """
        self._ahead, self._most, self._start = _Ahead(plan, blocks_of, requests), blocks, _ray_task()

    def expect(self, ids: Ids) -> None:
        """Announces a request: blocks that none needs any more are dropped, and the next ones are begun."""
        if self._ahead is None or not self._ahead.move_to(ids):
            return
        needed, present = self._ahead.needed, self._ahead.present()
        for number in [number for number in self._held if number not in needed]:
            del self._held[number]
        if self._start is None:
            return
        early = sum(not isinstance(table, pa.Table) for table in self._held.values())
        later = (number for number in needed if number not in self._held and number not in present)
        for number in [*(present - self._held.keys()), *islice(later, max(0, self._most - early))]:
            self._held[number] = self._start(self._blocks[number], self._columns)

    def table(self, number: int) -> pa.Table:
        """The content of a block.

        Raises:
            SampleError: its file is gone, damaged, or not what it was; it is named.
        """
        found = self._held.get(number)
        if found is not None and not isinstance(found, pa.Table):
            found = _result_of(found)
        if found is None:
            found = _read(self._blocks[number], self._columns)
        if isinstance(found, str):
            self._held.pop(number, None)
            raise SampleError(found)
        if found.num_rows != self._sizes[number]:
            raise SampleError(
                f"{self._blocks[number].file.path}: changed since the job started: a block has "
                f"{found.num_rows} rows, not {self._sizes[number]}"
            )
        self._keep(number, found)
        return found

    def _keep(self, number: int, table: pa.Table) -> None:
        if self._ahead is not None and self._ahead.needed:
            if number in self._ahead.needed:
                self._held[number] = table
            return
        self._held[number] = table
        self._held.move_to_end(number)
        while len(self._held) > _RECENT:
            self._held.popitem(last=False)

    def close(self) -> None:
        """Drops all blocks."""
        self._held.clear()
        self._ahead = self._start = None


class _Ahead:
    """The present request and those to come, and the blocks that they need.

    Attributes:
        needed: requests by block, in the order of the first need.
    """

    def __init__(self, plan: Plan, blocks_of: Callable[[Ids], Ids], requests: int) -> None:
        self._plan, self._blocks_of, self._requests = plan, blocks_of, requests
        self.needed: dict[int, int] = {}
        self._coming: deque[tuple[Ids, list[int]]] = deque()
        self._rest: Iterator[Ids] = iter(())

    def present(self) -> set[int]:
        """The blocks of the present request."""
        return set(self._coming[0][1])

    def move_to(self, ids: Ids) -> bool:
        """To the present request, the next one, or one near the plan's beginning; False for any other."""
        if self._coming and np.array_equal(self._coming[0][0], ids):
            return True
        if len(self._coming) > 1 and np.array_equal(self._coming[1][0], ids):
            self._leave(self._coming.popleft()[1])
        elif not self._seek(ids):
            return False
        while len(self._coming) < self._requests:
            self._look_at(next(self._rest))
        return True

    def _seek(self, ids: Ids) -> bool:
        plan = self._plan()
        for planned in islice(plan, _NEAR):
            if np.array_equal(planned, ids):
                self._coming.clear()
                self.needed.clear()
                self._rest = plan
                self._look_at(planned)
                return True
        return False

    def _look_at(self, ids: Ids) -> None:
        numbers = self._blocks_of(ids).tolist()
        self._coming.append((ids, numbers))
        for number in numbers:
            self.needed[number] = self.needed.get(number, 0) + 1

    def _leave(self, numbers: list[int]) -> None:
        for number in numbers:
            self.needed[number] -= 1
            if not self.needed[number]:
                del self.needed[number]


def _ray_task() -> Callable[[Block, Columns], Any] | None:
    """Starts the reading of a block on this node, at 0 CPUs; None where no Ray runs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return None
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=here)(_read)
    return task.remote


def _result_of(reference: Any) -> pa.Table | str | None:
    """What the task answered; None where Ray lost the task or its answer, so that it is read here."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        _log.warning("data: a block is read again: %s", str(error).partition("\n")[0])
        return None


def _read(block: Block, columns: Columns) -> pa.Table | str:
    """Runs in the task; an error is an answer in one line: Ray would add a traceback."""
    try:
        return read_block(block, columns)
    except (pa.ArrowException, OSError, EOFError, ValueError, tarfile.TarError) as error:
        return f"{block.file.path}: cannot be read: {' '.join(str(error).split())}"
