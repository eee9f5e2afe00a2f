"""The rows of one split of a stream, as a workload asks for them: by their numbers, a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.cursor import DataCursor
from jobs.data.errors import DataError, SampleError
from jobs.data.prefetch import plan_of
from jobs.data.streams.files import Splits, find_files
from jobs.data.streams.formats import FORMATS, Columns
from jobs.data.streams.index import Index, read_index
from jobs.data.streams.order import StreamOrder, default_lanes
from jobs.data.streams.reader import BlockReader
from jobs.run_dir.storage import shown
from jobs.spec.data import DataSpec, StreamSpec
from jobs.spec.job_spec import JobSpec

_LIKE = 65536
_FEWEST = 2


@dataclass(frozen=True, slots=True, eq=False)
class StreamRows:
    """Rows of which the labels are in memory, 24 bytes for each, and the content is read when it is needed.

    Attributes:
        index: of the files.
        rows: int64 [N], rows of the index in their order.
        labels: int64 [N], each an index into ``classes``.
        reader: of the blocks.
        name: the data set, for messages.
    """

    index: Index
    rows: NDArray[np.int64]
    labels: Tensor
    reader: BlockReader
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.index.classes

    @property
    def channels(self) -> int:
        """Red, green and blue."""
        return 3

    def fingerprint(self) -> str:
        """Identifies the samples and their order."""
        return f"{len(self)} rows of {self.index.identity}"

    def chosen(self, rows: Tensor) -> Self:
        """Only these samples, in the order of the files."""
        ids = rows.sort().values
        return replace(self, rows=self.rows[ids.numpy()], labels=self.labels[ids])

    def content(self, ids: NDArray[np.int64]) -> pa.Table:
        """The content of some samples, in this order.

        Raises:
            SampleError: a file is damaged, gone, or has changed.
        """
        rows, blocks = self.rows[ids], self.blocks(ids)
        parts, places = [], []
        for number in np.unique(blocks).tolist():
            own = np.flatnonzero(blocks == number)
            within = rows[own] - int(self.index.ends[number] - self.index.sizes[number])
            parts.append(self.reader.table(number).take(pa.array(within)))
            places.append(own)
        try:
            whole = pa.concat_tables(parts, promote_options="permissive")
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise SampleError(f"{self.name}: its files have other columns or types: {reason}") from error
        return whole.take(pa.array(np.argsort(np.concatenate(places))))

    def pixels(self, row: int) -> Tensor:
        """One image, uint8 [3, H, W].

        Raises:
            SampleError: it is broken; its file and row are named.
        """
        from jobs.data.decode import decode  # imports torchvision, which takes a second

        cell = self.content(np.array([row])).column(0)[0].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise SampleError(f"{self.place(row)}: a stream has its images as bytes, not as paths")
        return decode(BytesIO(content), self.place(row))

    def place(self, row: int) -> str:
        """A sample's file, and its row there, from 1."""
        return self.index.place(int(self.rows[row]))

    def spread(self) -> NDArray[np.int64]:
        """Ids of blocks from all places of the data, up to 65,536 of them, for what needs an estimate."""
        blocks = self.blocks(np.arange(len(self)))
        chosen, found, count = np.random.default_rng(0).permutation(np.unique(blocks)), [], 0
        for number in chosen:
            found.append(np.flatnonzero(blocks == number)[: _LIKE - count])
            count += len(found[-1])
            if count >= _LIKE:
                break
        return np.sort(np.concatenate(found))

    def order(self, data: DataSpec, own: StreamSpec, seed: int) -> StreamOrder:
        """Which samples make up each batch of the training."""
        sizes = np.bincount(self.blocks(np.arange(len(self))), minlength=len(self.index.blocks))
        lanes = own.lanes or default_lanes(data.batch_size)
        return StreamOrder(sizes.tolist(), data.batch_size, seed, lanes=lanes, shuffle_rows=own.shuffle_rows)

    def read_ahead(self, cursor: DataCursor, rank: int, world_size: int, spec: JobSpec) -> None:
        """From now on reads what this cursor will ask for; each request is to be announced to the reader."""
        own, parts = spec.data.stream or StreamSpec(), spec.train.micro_batches
        plan = plan_of(cursor, rank, world_size, parts)
        window = max(1, own.shuffle_rows // spec.data.batch_size)
        self.reader.read_ahead(
            lambda: (request.ids for request in plan()),
            self.blocks,
            blocks=own.prefetch_blocks,
            requests=parts * (window + 1),
        )

    def blocks(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each sample's block."""
        found: NDArray[np.int64] = np.searchsorted(self.index.ends, self.rows[ids], side="right")
        return found


def load_stream(data: DataSpec, columns: Columns) -> tuple[StreamRows, StreamRows]:
    """Training and test rows; without files that are named as held out, a share of the blocks is:
    ``data.val_share``, for documents ``data.holdout``.

    Raises:
        DataError: there is no file, one cannot be read, or a label is no class of the training rows.
    """
    files, name = _files(data), shown(_root(data)[0])
    train = _rows(read_index(files.train, columns), columns, name)
    if columns.label is not None and len(train.classes) < _FEWEST:
        named = ", ".join(train.classes)
        raise DataError(f"{_root(data)[1]} = {name}: has the classes {named}: it takes two or more")
    if files.test:
        return train, _rows(read_index(files.test, columns, train.classes), columns, name)
    blocks = train.blocks(np.arange(len(train)))
    count = len(train.index.blocks)
    if count < _FEWEST:
        raise DataError(
            f"{_root(data)[1]} = {name}: is one block, of which none can be held out: write more and smaller "
            "row groups, or name some files val-*"
        )
    share = data.holdout if data.path else data.val_share
    order = np.random.default_rng(data.split_seed).permutation(count)
    chosen = order[: min(count - 1, max(1, round(count * share)))]
    held_out = torch.from_numpy(np.isin(blocks, chosen))
    return train.chosen((~held_out).nonzero().flatten()), train.chosen(held_out.nonzero().flatten())


def first_block(data: DataSpec, columns: Columns) -> pa.Table:
    """The content of the first block, which shows the types of the columns.

    Raises:
        DataError: there is no file, or it cannot be read.
    """
    files = _files(data).train
    index = read_index(dict([next(iter(files.items()))]), columns)
    try:
        return BlockReader(index.blocks, index.sizes, columns).table(0)
    except SampleError as error:
        raise DataError(str(error)) from None


def _root(data: DataSpec) -> tuple[str, str]:
    """Where the files are, and the field that says so."""
    return (data.path, "data.path") if data.path else (data.root or "", "data.root")


def _files(data: DataSpec) -> Splits:
    root, field = _root(data)
    kinds = (kind for kind in FORMATS if (kind == ".tar") == (data.dataset == "webdataset"))
    return find_files(root, tuple(kinds), field)


def _rows(index: Index, columns: Columns, name: str) -> StreamRows:
    reader = BlockReader(index.blocks, index.sizes, columns)
    return StreamRows(index, np.arange(len(index.labels)), torch.from_numpy(index.labels), reader, name)
