"""Images and their labels from the columns of a table."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import torch
from torch import Tensor

from jobs.data.errors import DataError
from jobs.data.images import ImageFiles, Split, hold_out, spread_rows
from jobs.data.tables import read_splits
from jobs.spec.data import DataSpec
from jobs.spec.errors import did_you_mean

_log = logging.getLogger(__name__)

_NAMED = 5
_ENOUGH = 10
"""Rows with as many labels: of fewer each may be an example of its class."""
_NOTHING = (None, "")


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImages:
    """Image files that are cells of a table.

    Attributes:
        contents: the bytes of each file.
        labels: int64, shape [N], each an index into ``classes``.
        classes: the names of the classes.
        rows: of the table, from 1, for messages.
        name: the data set, for messages.
    """

    contents: pa.Array
    labels: Tensor
    classes: tuple[str, ...]
    rows: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Red, green and blue."""
        return 3

    def fingerprint(self) -> str:
        """Identifies the samples and their order, by all labels and some of the files."""
        digest = zlib.crc32(self.labels.contiguous().numpy().data)
        for row in spread_rows(len(self)).tolist():
            digest = zlib.crc32(self.contents[row].as_py(), digest)
        return f"{len(self)} images, {digest:08x}"

    def pixels(self, row: int) -> Tensor:
        """One image, uint8 [3, H, W].

        Raises:
            SampleError: it is broken; its row is named.
        """
        from jobs.data.decode import decode  # imports torchvision, which takes a second

        name = f"{self.name}: row {int(self.rows[row])}"
        return decode(BytesIO(self.contents[row].as_py()), name)

    def chosen(self, rows: Tensor) -> Self:
        """Only these samples."""
        contents = self.contents.take(pa.array(rows.numpy()))
        return replace(self, contents=contents, labels=self.labels[rows], rows=self.rows[rows])


TableImages = ImageFiles | EncodedImages


def load_table(config: DataSpec) -> tuple[TableImages, TableImages]:
    """Training and test split of a table with images, as paths or as files in its cells, and labels.

    Classes are the labels that occur in the training table, in their order; or those of the ``ClassLabel`` of
    a Hugging Face data set.

    Raises:
        DataError: table, column or image is missing, or a label is no class; the row is named, from 1.
    """
    root, own = Path(config.root or "").expanduser(), config.columns
    train, test = read_splits(root, "data.root", [own.image, own.label], own.label)
    classes = classes_of(train, own.label, root)
    return held_out(config, train, test, lambda table: _images(table, classes, config, root))


def held_out(
    config: DataSpec, train: pa.Table, test: pa.Table | None, made: Callable[[pa.Table], Split]
) -> tuple[Split, Split]:
    """Training and test split: both tables ``made`` into samples, or of one a share held out."""
    found = made(train)
    if test is None:
        return hold_out(found, config.val_share, config.split_seed, str(Path(config.root or "").expanduser()))
    return found, made(test)


def classes_of(table: pa.Table, label: str, root: Path) -> dict[Any, str]:
    """The name of each label, in the order of the outputs."""
    column = table.column(label)
    if not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type) or _is_text(column.type)):
        raise DataError(f"{root}: column {label!r} is {column.type}: {_why_no_label(column.type)}")
    known = _class_label(table, label)
    found = sorted(value for value in column.unique().to_pylist() if value not in _NOTHING)
    classes = dict(enumerate(known)) if known else {value: str(value) for value in found}
    if len(classes) < 2:
        named = f", {next(iter(classes.values()))}" if classes else ""
        raise DataError(f"{root}: column {label!r} has {len(classes)} class{named}: it takes two or more")
    if _ENOUGH <= table.num_rows == len(found):
        raise DataError(f"{root}: {label} differs in each row: a number to predict or an id is no class")
    _warn_of_twins(classes.values(), label, root)
    return classes


def _why_no_label(kind: pa.DataType) -> str:
    if pa.types.is_binary(kind):
        return "its texts are not UTF-8: save the table as UTF-8"
    if pa.types.is_floating(kind):
        return "labels are texts or whole numbers, which empty cells turn into fractions: remove those rows"
    return "labels are texts or whole numbers"


def _warn_of_twins(names: Iterable[str], label: str, root: Path) -> None:
    """Names that look alike are usually one class, and count as two."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(unicodedata.normalize("NFKC", " ".join(name.split())).casefold(), []).append(name)
    twins = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    if twins:
        named = "; ".join(twins[:_NAMED])
        _log.warning("data: classes in column %r of %s that differ little: %s", label, root, named)


def _class_label(table: pa.Table, label: str) -> list[str]:
    """The names of a ``ClassLabel``, which ``datasets`` keeps in the metadata."""
    try:
        info = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in info[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _images(table: pa.Table, classes: dict[Any, str], config: DataSpec, root: Path) -> TableImages:
    labels = labels_of(table.column(config.columns.label).to_pylist(), classes, config.columns.label, root)
    names, column = tuple(classes.values()), table.column(config.columns.image)
    kind = column.type
    if pa.types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}:
        cells = [cell or {} for cell in column.to_pylist()]
        encoded = any(cell.get("bytes") for cell in cells)
        column = pa.chunked_array([pa.array([cell.get("bytes" if encoded else "path") for cell in cells])])
        kind = column.type
    if column.null_count:
        row = column.is_null().to_pylist().index(True) + 1
        raise DataError(f"{root}: row {row} has no {config.columns.image}")
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        rows = torch.arange(1, len(labels) + 1)
        return EncodedImages(column.combine_chunks(), labels, names, rows, str(root))
    if not _is_text(kind):
        message = f"column {config.columns.image!r} is {kind}: it takes paths, or image files as bytes"
        raise DataError(f"{root}: {message}")
    return _files(column.to_pylist(), labels, names, config, root)


def _files(
    paths: list[str], labels: Tensor, names: tuple[str, ...], config: DataSpec, root: Path
) -> ImageFiles:
    folder = root if root.is_dir() else root.parent
    missing = [row for row, path in enumerate(paths, 1) if not os.path.isfile(folder / path)]  # noqa: PTH113
    if missing and config.on_broken == "error":
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{root}: row {missing[0]}: there is no file {folder / paths[missing[0] - 1]}{more}; paths are "
            f"relative to {folder}; data.on_broken: skip trains without them"
        )
    return ImageFiles(folder, tuple(paths), labels, names, str(root))


def labels_of(values: list[Any], classes: dict[Any, str], column: str, root: Path) -> Tensor:
    places = {value: place for place, value in enumerate(classes)}
    by_name = {name: place for place, name in enumerate(classes.values())}
    found = []
    for row, value in enumerate(values, 1):
        place = None if value in _NOTHING else places.get(value, by_name.get(str(value)))
        if place is None:
            raise DataError(_no_class(f"{root}: row {row}", column, value, list(classes.values())))
        found.append(place)
    return torch.tensor(found, dtype=torch.int64)


def _no_class(where: str, column: str, value: Any, names: Sequence[str]) -> str:
    if value in _NOTHING:
        return f"{where} has no {column}"
    more = ", ..." if len(names) > _NAMED else ""
    message = (
        f"{where}: {column} {value!r} is no class of the training data ({', '.join(names[:_NAMED])}{more})"
    )
    question = did_you_mean(str(value), names)
    return f"{message}; {question}" if question else message


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
