"""The built-in classification of rows of numbers: a small network on the columns of a table."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.data.errors import DataError, SampleError
from jobs.data.images import first, hold_out
from jobs.data.labelled import classes_of, labels_of
from jobs.data.streams.formats import Columns
from jobs.data.streams.rows import StreamRows, first_block, load_stream
from jobs.data.tables import column_names, read_splits
from jobs.models.mlp import build_mlp
from jobs.spec.data import DataSpec
from jobs.spec.job_spec import JobSpec
from jobs.workloads.class_scores import class_metrics, class_sums, confusion_matrix
from jobs.workloads.losses import cross_entropy
from jobs.workloads.streamed import Streamed

_EVAL_ROWS = 4096
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
    """

    features: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

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


Rows = FeatureRows | StreamRows


class TabularWorkload(Streamed):
    """Cross-entropy on rows of a table; fulfils ``jobs.workloads.base.Workload``.

    Attributes:
        n_train: training rows.
        classes: their names, in the order of the outputs.
        columns: the names of the features, in the order of the inputs.
        fingerprint: identifies the training data.
        model_sizes: arguments of ``build_mlp`` that follow from the data.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        train, test, self.columns, features = load_rows(spec)
        self._train, self._test = first(train, spec.data.train_limit), first(test, spec.data.test_limit)
        self.n_train, self.classes = len(self._train), self._train.classes
        self.dataset = Path(train.name).name
        self.fingerprint = self._train.fingerprint()
        self.model_sizes = {"features": features, "classes": len(self.classes)}
        self._follow(self._train)
        typical = self._train.spread() if isinstance(self._train, StreamRows) else np.arange(self.n_train)
        rows = self._numbers(self._train, typical).double()
        deviation, mean = torch.std_mean(rows, dim=0, correction=0)
        self._mean, self._std = mean.float(), deviation.clamp_min(1e-6).float()

    @property
    def class_counts(self) -> dict[str, int]:
        """Training samples by class."""
        counts = torch.bincount(self._train.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    def describe_sample(self, sample: int) -> str:
        """Its class and its place."""
        place = self._stream.place(sample) if self._stream else f"sample {sample} of {self.dataset}"
        return f"{self.classes[int(self._train.labels[sample])]}, {place}"

    def build_model(self) -> nn.Module:
        """``model.layers`` hidden layers of ``model.width`` with ReLU, on standardized features."""
        return build_mlp(self._spec.model, **self.model_sizes, mean=self._mean, std=self._std)

    def train_batch(
        self, ids: NDArray[np.int64], epoch: int, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Features, float32 [N, features], and labels, int64 [N]."""
        del epoch  # the same rows in each
        self._expect(ids)
        return self._batch(self._train, ids, device)

    def _batch(self, data: Rows, ids: NDArray[np.int64], device: torch.device | str) -> tuple[Tensor, Tensor]:
        return self._numbers(data, ids).to(device), data.labels[torch.tensor(ids)].to(device)

    def _numbers(self, data: Rows, ids: NDArray[np.int64]) -> Tensor:
        """float32 [N, features]."""
        if isinstance(data, FeatureRows):
            return data.features[torch.tensor(ids)]
        try:
            return _features(data.content(ids), self.columns, lambda row: data.place(int(ids[row])))
        except DataError as error:  # it may meet one rank, in the midst of training
            raise SampleError(str(error)) from None

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats, with the label smoothing and the z-loss of the spec."""
        own, (features, labels) = self._spec.regularize, batch
        smoothing, z_loss = own.label_smoothing, own.z_loss
        return cross_entropy(model(features), labels, label_smoothing=smoothing, z_loss=z_loss)

    def evaluate(
        self, model: nn.Module, rank: int, world_size: int, device: torch.device | str
    ) -> dict[str, float]:
        """Correct answers, loss, number and classes of the test rows ``rank, rank + world_size, ...``."""
        own = np.arange(rank, len(self._test), world_size)
        parts = (own[start : start + _EVAL_ROWS] for start in range(0, len(own), _EVAL_ROWS))
        read = (self._batch(self._test, part, device) for part in parts)
        batches = ((model(features), labels) for features, labels in read)
        return class_sums(model, batches, len(self.classes), device)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy, mean loss, top-5 accuracy and macro F1 over the test rows."""
        count = max(sums["count"], 1.0)
        found = {"test_accuracy": sums["correct"] / count, "test_loss": sums["loss_sum"] / count}
        return {**found, **class_metrics(sums, len(self.classes))}

    def confusion(self, sums: Mapping[str, float]) -> list[list[int]] | None:
        """The confusion matrix, a row for each true class; None with more than 32 classes."""
        return confusion_matrix(sums, len(self.classes))


def load_rows(spec: JobSpec) -> tuple[Rows, Rows, tuple[str, ...], int]:
    """Training and test rows, the names of the columns with features, and how many features these are.

    Raises:
        DataError: table or column is missing, a cell is no number, or a label no class; the row is named.
    """
    data = spec.data
    if data.stream is not None:
        return _streamed(data)
    root, label = Path(data.root or "").expanduser(), data.columns.label
    names = list(data.columns.features or [n for n in column_names(root) or [] if n != label])
    train, test = read_splits(root, "data.root", [*names, label])
    if data.columns.features is None:
        names = [name for name in names if _is_numeric(train.column(name).type)]
    if not names:
        raise DataError(f"{root}: has no column of numbers besides {label!r}")
    classes = classes_of(train, label, root)
    found = _rows(train, names, label, classes, root)
    if test is None:
        own, held_out = hold_out(found, data.val_share, data.split_seed, str(root))
    else:
        own, held_out = found, _rows(test, names, label, classes, root)
    return own, held_out, tuple(names), found.channels


def _streamed(data: DataSpec) -> tuple[Rows, Rows, tuple[str, ...], int]:
    label, names = data.columns.label, data.columns.features
    shown = first_block(data, Columns(label, names))
    names = names or tuple(n for n in shown.column_names if n != label and _is_numeric(shown.column(n).type))
    if not names:
        raise DataError(f"data.root = {data.root}: has no column of numbers besides {label!r}")
    size = _features(shown.slice(0, 1), names, lambda row: f"{data.root}: row {row + 1}").shape[1]
    return *load_stream(data, Columns(label, names)), names, size


def _rows(table: pa.Table, names: list[str], label: str, classes: dict[Any, str], root: Path) -> FeatureRows:
    labels = labels_of(table.column(label).to_pylist(), classes, label, root)
    features = _features(table, names, lambda row: f"{root}: row {row + 1}")
    return FeatureRows(features, labels, tuple(classes.values()), str(root))


def _features(table: pa.Table, names: Sequence[str], where: Where) -> Tensor:
    """The numbers of all columns, float32 [N, features]; ``where`` says which row a number is in."""
    return torch.from_numpy(np.concatenate([_numbers(table.column(n), n, where) for n in names], axis=1))


def _is_numeric(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_numeric(kind.value_type)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _numbers(column: pa.ChunkedArray, name: str, where: Where) -> NDArray[np.float32]:
    """float32 [N, 1], or [N, size] of a column with a list in each cell."""
    if not _is_numeric(column.type):
        file = where(0).rpartition(": ")[0]
        raise DataError(f"{file}: column {name!r} is {column.type}: features are numbers, or lists of them")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{where(row)} has no {name}: fill it in, or leave the row out")
    try:
        values = np.asarray(column.to_pylist(), dtype=np.float32)
    except (ValueError, TypeError):
        file = where(0).rpartition(": ")[0]
        raise DataError(f"{file}: the lists of column {name!r} have other lengths, or holes") from None
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise DataError(f"{where(int(bad[0]))}: {name} is not a finite number")
    return values.reshape(len(values), -1)
