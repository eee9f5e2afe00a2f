"""Documents of a stream as training samples: a row is tokenized when it is read, and padded in its batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.documents import Chat, document, document_column
from jobs.data.errors import DataError, SampleError
from jobs.data.images import first
from jobs.data.samples import Tokens, padded
from jobs.data.streams.formats import Columns
from jobs.data.streams.rows import StreamRows, first_block, load_stream
from jobs.spec.data import DataSpec

Encode = Callable[[str | Chat], Tokens]


class StreamedDocuments:
    """A sample is a row, cut at ``context`` tokens to predict, as ``jobs.data.samples.Padded`` has them.

    A row without a token to learn stays, and adds nothing to the loss of its batch.
    """

    def __init__(
        self, stream: StreamRows, column: str, encode: Encode, context: int, *, padding: int
    ) -> None:
        self.stream = stream
        self._column, self._encode, self._context, self._padding = column, encode, context, padding

    def __len__(self) -> int:
        return len(self.stream)

    def batch(self, ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Tokens and what follows each, int64 [N, the longest].

        Raises:
            SampleError: a file is damaged, or a row is no document; it is named.
        """
        cells = self.stream.content(ids).column(0).to_pylist()
        found = [self._tokens(cell, row) for cell, row in zip(cells, ids.tolist(), strict=True)]
        return padded(found, self._padding)

    def _tokens(self, cell: object, row: int) -> Tokens:
        try:
            own = document("" if cell is None else cell, self.stream.place(row), self._column)
            found = self._encode(own)
        except DataError as error:  # it may meet one rank, in the midst of training
            raise SampleError(str(error)) from None
        return Tokens(found.ids[: self._context + 1], found.learned[: self._context + 1])

    def fingerprint(self) -> str:
        """Identifies the documents and their order."""
        return self.stream.fingerprint()


def load_streamed_documents(
    data: DataSpec, encode: Encode, context: int, *, padding: int
) -> tuple[StreamedDocuments, StreamedDocuments]:
    """Training and held-out documents of ``data.path``.

    Raises:
        DataError: there is no file, one cannot be read, or none of its columns has documents.
    """
    column = document_column(data, first_block(data, Columns(None, None)).column_names)
    splits = load_stream(data, Columns(None, (column,), text=(column,)))
    pairs = zip(splits, (data.train_limit, data.test_limit), strict=True)
    own, held_out = (
        StreamedDocuments(first(split, limit), column, encode, context, padding=padding)
        for split, limit in pairs
    )
    return own, held_out
