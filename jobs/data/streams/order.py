"""Which rows make up each batch of a stream: a pure function of block sizes, seed, epoch and batch.

The blocks of an epoch are put in random order, one after the other. That sequence is cut into ``lanes`` of
equal length. A global batch takes the same number of rows from each lane, and within a lane the rows of each
window are shuffled. So a rank, whose share of a batch is some of the lanes, reads its own blocks, one after
the other, and the batches are the same for every number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_LANES = 8
_KEPT = 3
"""Windows: the one in use, the one before it, and one ahead."""


def default_lanes(batch_size: int) -> int:
    """The largest power of two up to 8 that divides the batch size."""
    return math.gcd(batch_size, _LANES)


class StreamOrder:
    """The sample ids of each batch; a sample's id is its place in the stored order of all blocks.

    As with a permutation, each sample occurs at most once in an epoch, and less than a batch is dropped.

    Args:
        sizes: rows of each block, in stored order.
        batch_size: rows of a global batch; a multiple of ``lanes``.
        seed: with the epoch, fixes the order.
        lanes: places in the data that are read at the same time.
        shuffle_rows: rows of a window, over all lanes; it has one batch at least.
    """

    def __init__(
        self, sizes: Sequence[int], batch_size: int, seed: int, *, lanes: int, shuffle_rows: int
    ) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self._seed, self._lanes, self._share = seed, lanes, batch_size // lanes
        self._batches = int(self._sizes.sum()) // batch_size
        self.window_batches = max(1, shuffle_rows // batch_size)
        """Batches of a window."""
        self._window = lru_cache(_KEPT)(self._make_window)
        self._blocks = lru_cache(_KEPT)(self._make_blocks)

    def __call__(self, epoch: int, index: int) -> NDArray[np.int64]:
        """The ids of batch ``index`` of an epoch, int64 [batch size]."""
        window, within = divmod(index, self.window_batches)
        start = within * self._share
        return self._window(epoch, window)[:, start : start + self._share].ravel()

    def _make_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        """int64 [lanes, rows of the window in a lane]."""
        first = window * self.window_batches
        rows = min(self.window_batches, self._batches - first) * self._share
        starts = np.arange(self._lanes)[:, None] * self._batches * self._share + first * self._share
        generator = np.random.default_rng([self._seed, epoch, window])
        places = starts + generator.permuted(np.tile(np.arange(rows), (self._lanes, 1)), axis=1)
        blocks, ends = self._blocks(epoch)
        found = np.searchsorted(ends, places, side="right")
        ids: NDArray[np.int64] = self._firsts[blocks[found]] + places - (ends - self._sizes[blocks])[found]
        return ids

    def _make_blocks(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The blocks in the order of an epoch, and where in the sequence each ends."""
        blocks = np.random.default_rng([self._seed, epoch]).permutation(len(self._sizes))
        return blocks, np.cumsum(self._sizes[blocks])
