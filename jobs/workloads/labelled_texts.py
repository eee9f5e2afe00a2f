"""Texts with a class each, from a table."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import torch
from torch import Tensor

from jobs.data.errors import DataError
from jobs.data.images import first
from jobs.data.labelled import classes_of, held_out, labels_of
from jobs.data.tables import read_splits
from jobs.spec.job_spec import JobSpec


@dataclass(frozen=True, slots=True, eq=False)
class LabelledTexts:
    """Texts with a class each.

    Attributes:
        texts: N of them.
        labels: int64, shape [N], each an index into ``classes``.
        classes: the names of the classes.
        name: the data set, for messages.
    """

    texts: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def channels(self) -> int:
        """Of a text: one."""
        return 1

    def fingerprint(self) -> str:
        """Identifies the samples and their order."""
        digest = zlib.crc32(self.labels.contiguous().numpy().data)
        for text in self.texts:
            digest = zlib.crc32(text.encode(errors="replace"), digest)
        return f"{len(self)} texts, {digest:08x}"

    def pixels(self, row: int) -> Tensor:
        """The code points of one text."""
        return torch.tensor([ord(letter) for letter in self.texts[row]])

    def chosen(self, rows: Tensor) -> Self:
        """Only these samples."""
        return replace(self, texts=tuple(self.texts[row] for row in rows.tolist()), labels=self.labels[rows])


def load_texts(spec: JobSpec) -> tuple[LabelledTexts, LabelledTexts]:
    """Training and test texts, as many as the spec allows.

    Raises:
        DataError: table or column is missing, a text is, or a label is no class; the row is named.
    """
    data = spec.data
    root, text, label = Path(data.root or "").expanduser(), data.columns.text or "text", data.columns.label
    train, test = read_splits(root, "data.root", [text, label], label)
    classes = classes_of(train, label, root)
    own, others = held_out(data, train, test, lambda table: _labelled(table, text, label, classes, root))
    return first(own, data.train_limit), first(others, data.test_limit)


def texts_of(table: pa.Table, column: str, root: Path) -> tuple[str, ...]:
    """The texts of a column.

    Raises:
        DataError: a cell is no text; its row is named.
    """
    texts = table.column(column).to_pylist()
    for row, value in enumerate(texts, 1):
        if not isinstance(value, str):
            raise DataError(f"{root}: row {row}: {column} is {value!r}: it takes texts")
    return tuple(texts)


def _labelled(table: pa.Table, text: str, label: str, classes: dict[Any, str], root: Path) -> LabelledTexts:
    labels = labels_of(table.column(label).to_pylist(), classes, label, root)
    return LabelledTexts(texts_of(table, text, root), labels, tuple(classes.values()), str(root))
