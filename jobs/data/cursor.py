"""The order of the training samples: the same for every world size, resumable at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from jobs.data.errors import DataError

_IDENTITY = ("n_samples", "batch_size", "seed")
_POSITION = ("epoch", "index")
Order = Callable[[int, int], "NDArray[np.int64]"]
"""The sample ids of a batch, by its epoch and its index in it."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The samples of one global batch.

    Attributes:
        epoch: counts from 0.
        index: of this batch within its epoch, counts from 0.
        ids: global sample ids, int64, as many as the global batch size.
        ends_epoch: whether this is the last batch of its epoch.
    """

    epoch: int
    index: int
    ids: NDArray[np.int64]
    ends_epoch: bool


class DataCursor:
    """Walks through the sample ids, in another order in each epoch, a global batch at a time.

    The samples left over after the last full batch of an epoch are dropped: another order drops others. Every
    rank has its own copy and advances it alike.

    Args:
        n_samples: size of the training set.
        batch_size: samples of a global batch, over all ranks.
        seed: with the epoch, fixes the permutation.
        order: of the samples, where it is no ``Permutation``.

    Raises:
        DataError: the training set is smaller than one batch.
    """

    def __init__(self, n_samples: int, batch_size: int, seed: int = 0, *, order: Order | None = None) -> None:
        if batch_size < 1 or n_samples < batch_size:
            raise DataError(
                f"batch size {batch_size} does not fit {n_samples} training samples: "
                f"set data.batch_size to 1..{n_samples}"
            )
        self.n_samples, self.batch_size, self.seed = n_samples, batch_size, seed
        self.epoch = 0
        """Epoch of the batch that comes next."""
        self.index = 0
        """Index, within its epoch, of the batch that comes next."""
        self.last_ids: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """Sample ids of the last batch; an incident names them."""
        self.describe: Callable[[int], str] | None = None
        """Says what a sample is, where the data set knows; an incident shows it."""
        self._last: Batch | None = None
        self._order = order or Permutation(n_samples, batch_size, seed)

    @property
    def batches_per_epoch(self) -> int:
        """Full batches in one epoch."""
        return self.n_samples // self.batch_size

    def next_batch(self) -> Batch:
        """The next global batch; there always is one."""
        ids = self._order(self.epoch, self.index)
        batch = Batch(self.epoch, self.index, ids, self.index + 1 == self.batches_per_epoch)
        self.last_ids, self._last = ids, batch
        self.epoch, self.index = (self.epoch + 1, 0) if batch.ends_epoch else (self.epoch, self.index + 1)
        return batch

    def upcoming(self) -> Iterator[Batch]:
        """The batch given out last, if there is one, then those that follow; the cursor itself stays."""
        if self._last is not None:
            yield self._last
        copy = DataCursor(self.n_samples, self.batch_size, self.seed, order=self._order)
        copy.epoch, copy.index = self.epoch, self.index
        while True:
            yield copy.next_batch()

    def state_dict(self) -> dict[str, int]:
        """Identity and position, as plain integers."""
        return {name: getattr(self, name) for name in (*_IDENTITY, *_POSITION)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Moves to a saved position.

        Raises:
            DataError: the state belongs to other data, or is not a state of this class.
        """
        missing = [name for name in (*_IDENTITY, *_POSITION) if name not in state]
        if missing:
            raise DataError(f"the saved data position lacks {', '.join(missing)}")
        for name in _IDENTITY:
            if state[name] != getattr(self, name):
                raise DataError(
                    f"the saved data position has {name} {state[name]}, this run has {getattr(self, name)}: "
                    f"resume with {name} {state[name]}, or start a new job"
                )
        if not (state["epoch"] >= 0 and 0 <= state["index"] < self.batches_per_epoch):
            raise DataError(
                f"the saved data position is outside the data: epoch {state['epoch']}, "
                f"batch {state['index']} of {self.batches_per_epoch}"
            )
        self.epoch, self.index = int(state["epoch"]), int(state["index"])


class Permutation:
    """A seeded permutation of all samples in each epoch; two are kept, since reading ahead may be in the next
    epoch already."""

    def __init__(self, n_samples: int, batch_size: int, seed: int) -> None:
        self._batch_size = batch_size
        self._of_epoch = lru_cache(2)(partial(epoch_order, n_samples, seed))

    def __call__(self, epoch: int, index: int) -> NDArray[np.int64]:
        """The ids of a batch; not to be written to."""
        return self._of_epoch(epoch)[index * self._batch_size : (index + 1) * self._batch_size]


def epoch_order(n_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The ids of all samples in the order of an epoch; not to be written to."""
    order = np.random.default_rng([seed, epoch]).permutation(n_samples)
    order.flags.writeable = False  # batches are views of it
    return order


def shard(ids: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """The contiguous share of a global batch that one rank trains on; equal shares, in rank order.

    Raises:
        DataError: the batch cannot be divided equally, so that a mean over ranks would not be a mean
            over samples.
    """
    if not 0 <= rank < world_size:
        raise DataError(f"rank {rank} does not exist in a world of {world_size}")
    share, rest = divmod(len(ids), world_size)
    if rest:
        raise DataError(
            f"a global batch of {len(ids)} cannot be divided equally among {world_size} workers: "
            f"set data.batch_size to a multiple of {world_size}"
        )
    return ids[rank * share : (rank + 1) * share]
