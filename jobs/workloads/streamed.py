"""What a workload adds for data that are a stream: their order, and reading them ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.data.cursor import DataCursor, Order
from jobs.data.streams.rows import StreamRows
from jobs.spec.job_spec import JobSpec


class Streamed:
    """Base of workloads whose data may be a stream; does nothing where they are not.

    Attributes:
        order: of the training samples; None for a permutation.
    """

    _spec: JobSpec
    _stream: StreamRows | None = None
    """The training data."""
    order: Order | None = None

    def _follow(self, train: Any) -> None:
        """Takes the order of the training data, where they are a stream."""
        own = self._spec.data.stream
        if isinstance(train, StreamRows) and own is not None:
            self._stream, self.order = train, train.order(self._spec.data, own, self._spec.seed)

    def _expect(self, ids: NDArray[np.int64]) -> None:
        """Announces the samples of a training batch, before they are read."""
        if self._stream is not None:
            self._stream.reader.expect(ids)

    def read_ahead(self, cursor: DataCursor, rank: int, world_size: int, device: torch.device | str) -> None:
        """From now on blocks of the stream are read before this cursor asks for them; ``close`` ends it."""
        del device
        if self._stream is not None:
            self._stream.read_ahead(cursor, rank, world_size, self._spec)

    def close(self) -> None:
        """Drops the blocks of the stream."""
        if self._stream is not None:
            self._stream.reader.close()
