"""Rows of numbers with a class each, from a table."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.data.errors import DataError
from jobs.data.images import first
from jobs.data.labelled import classes_of, held_out, labels_of
from jobs.data.tables import column_names, read_splits
from jobs.models.mlp import build_mlp
from jobs.spec.job_spec import JobSpec
from jobs.spec.sections import ModelSpec

_log = logging.getLogger(__name__)

_FEWEST_COUNTED = 10
_INDEX = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf)", re.IGNORECASE)
_NAMED, _LONGEST = 5, 20

Where = Callable[[int], str]
"""The place of a row, for messages."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureRows:
    """Rows of numbers with a class each.

    Attributes:
        features: float32, shape [N, features].
        labels: int64, shape [N], each an index into ``classes``.
        classes: the names of the classes.
        name: the data set, for messages.
        columns: the names of the features, in the order of the inputs.
    """

    features: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Numbers of a row."""
        return self.features.shape[1]

    def fingerprint(self) -> str:
        """Identifies the samples and their order."""
        digest = zlib.crc32(self.features.numpy().data, zlib.crc32(self.labels.numpy().data))
        return f"{len(self)} rows, {digest:08x}"

    def pixels(self, row: int) -> Tensor:
        """The numbers of one row."""
        return self.features[row]

    def chosen(self, rows: Tensor) -> Self:
        """Only these samples."""
        return replace(self, features=self.features[rows].contiguous(), labels=self.labels[rows].contiguous())

    @property
    def sizes(self) -> dict[str, int]:
        """Of the model, as they follow from the data."""
        return {"features": self.channels, "classes": len(self.classes)}

    def inputs(self, rows: Tensor) -> Tensor:
        """What the model sees of these samples, float32 [N, features]."""
        return self.features[rows]

    def read(self, table: pa.Table, root: Path) -> Tensor:
        """The same of other rows, without labels."""
        return other_rows(table, self.columns, self.channels, root)

    def build_model(self, spec: ModelSpec) -> nn.Module:
        """An ``mlp`` that standardizes by these rows."""
        mean, std = moments(self.features)
        return build_mlp(spec, **self.sizes, mean=mean, std=std)


def load_rows(spec: JobSpec) -> tuple[FeatureRows, FeatureRows]:
    """Training and test rows, as many as the spec allows.

    Raises:
        DataError: table or column is missing, a cell is no number, or a label no class; the row is named.
    """
    data = spec.data
    root, label = Path(data.root or "").expanduser(), data.columns.label
    names = list(data.columns.features or [n for n in column_names(root) or [] if n != label])
    train, test = read_splits(root, "data.root", [*names, label], label)
    if data.columns.features is None:
        names = numeric_columns(train, label, str(root))
    classes = classes_of(train, label, root)
    own, others = held_out(data, train, test, lambda table: _rows(table, names, label, classes, root))
    return first(own, data.train_limit), first(others, data.test_limit)


def numeric_columns(table: pa.Table, label: str, place: str) -> list[str]:
    """The columns with numbers, or lists of them, but for the label, and for one that counts the rows: that
    tells the class where the rows are sorted. What is left out is logged.

    Raises:
        DataError: there is none.
    """
    others = [name for name in table.column_names if name != label]
    numeric = [name for name in others if _is_numeric(table.column(name).type)]
    names = [name for name in numeric if not _counts_rows(name, table.column(name))]
    if names and (counts := [name for name in numeric if name not in names]):
        _log.warning(
            "data: left out, since it counts the rows of %s: %s", place, ", ".join(map(repr, counts))
        )
    if names and (text := [_first_text(name, table.column(name)) for name in others if name not in numeric]):
        _log.warning("data: left out, since they are no numbers in %s: %s", place, ", ".join(text[:_NAMED]))
    names = names or numeric
    if not names:
        message = f"{place}: has no column of numbers besides {label!r}"
        raise DataError(f"{message}; to classify texts, set data.columns.text to their column")
    return names


def _counts_rows(name: str, column: pa.ChunkedArray) -> bool:
    """An index, as pandas writes it, or 0, 1, 2, ..."""
    if not pa.types.is_integer(column.type) or column.null_count or len(column) < _FEWEST_COUNTED:
        return False
    values = column.to_numpy()
    index = _INDEX.fullmatch(name) and len(np.unique(values)) == len(values)
    return bool(index or (np.diff(values) == 1).all())


def _first_text(name: str, column: pa.ChunkedArray) -> str:
    """A column's name, and the first cell that keeps it from being one of numbers."""
    for row, value in enumerate(column.to_pylist(), 1):
        if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
            return f"{name} (row {row}: {value[:_LONGEST]!r})"
    return name


def features(table: pa.Table, names: Sequence[str], where: Where) -> Tensor:
    """The numbers of all columns, float32 [N, features]; ``where`` says which row a number is in.

    Raises:
        DataError: a cell is no number.
    """
    return torch.from_numpy(np.concatenate([_numbers(table.column(n), n, where) for n in names], axis=1))


def other_rows(table: pa.Table, names: Sequence[str], size: int, root: Path) -> Tensor:
    """The numbers of rows that were not trained on, float32 [N, size].

    Raises:
        DataError: a cell is no number, or there are more or fewer of them.
    """
    found = features(table, names, lambda row: f"{root}: row {row + 1}")
    if found.shape[1] != size:
        raise DataError(f"{root}: has {found.shape[1]} numbers in a row; {size} were trained on")
    return found


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column of ``rows``, float32 [N, features]; no deviation is zero."""
    deviation, mean = torch.std_mean(rows.double(), dim=0, correction=0)
    return mean.float(), deviation.clamp_min(1e-6).float()


def _rows(table: pa.Table, names: list[str], label: str, classes: dict[Any, str], root: Path) -> FeatureRows:
    labels = labels_of(table.column(label).to_pylist(), classes, label, root)
    numbers = features(table, names, lambda row: f"{root}: row {row + 1}")
    return FeatureRows(numbers, labels, tuple(classes.values()), str(root), tuple(names))


def _is_numeric(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_numeric(kind.value_type)
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(is_kind(kind) for is_kind in kinds)


def _numbers(column: pa.ChunkedArray, name: str, where: Where) -> NDArray[np.float32]:
    """float32 [N, 1], or [N, size] of a column with a list in each cell."""
    if not _is_numeric(column.type):
        file = where(0).rpartition(": ")[0]
        raise DataError(f"{file}: column {name!r} is {column.type}: features are numbers, or lists of them")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{where(row)} has no {name}: fill it in, or leave the row out")
    try:
        exact = np.asarray(column.to_pylist(), dtype=np.float64)
    except (ValueError, TypeError):
        file = where(0).rpartition(": ")[0]
        raise DataError(f"{file}: the lists of column {name!r} have other lengths, or holes") from None
    with np.errstate(over="ignore"):
        values = exact.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise DataError(f"{where(int(bad[0]))}: {name} is not a finite number in float32")
    if len(exact) > 1 and np.ptp(exact) > 0 and np.ptp(values) == 0:
        file = where(0).rpartition(": ")[0]
        raise DataError(f"{file}: {name} differs by less than float32 resolves: subtract {exact.min():.17g}")
    return values.reshape(len(values), -1)
