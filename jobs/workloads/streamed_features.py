"""Rows of numbers with a class each, from a stream."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.data.errors import DataError, SampleError
from jobs.data.images import first
from jobs.data.streams.formats import Columns
from jobs.data.streams.rows import StreamRows, first_block, load_stream
from jobs.models.mlp import build_mlp
from jobs.spec.job_spec import JobSpec
from jobs.spec.sections import ModelSpec
from jobs.workloads.feature_rows import features, moments, numeric_columns, other_rows


@dataclass(frozen=True, slots=True, eq=False)
class StreamedFeatures:
    """As ``FeatureRows``, but the numbers are read when they are needed.

    Attributes:
        rows: of the stream.
        columns: the names of the features, in the order of the inputs.
        mean: of each feature, over rows from all places of the data; float32 [features].
        std: likewise, the standard deviation.
    """

    rows: StreamRows
    columns: tuple[str, ...]
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        """int64, shape [N]."""
        return self.rows.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.rows.classes

    @property
    def name(self) -> str:
        """The data set, for messages."""
        return self.rows.name

    @property
    def sizes(self) -> dict[str, int]:
        """Of the model, as they follow from the data."""
        return {"features": len(self.mean), "classes": len(self.classes)}

    def fingerprint(self) -> str:
        """Identifies the samples and their order."""
        return self.rows.fingerprint()

    def inputs(self, rows: Tensor) -> Tensor:
        """What the model sees of these samples, float32 [N, features].

        Raises:
            SampleError: a cell is no number; its file and row are named.
        """
        return _numbers(self.rows, self.columns, rows.numpy())

    def read(self, table: pa.Table, root: Path) -> Tensor:
        """The same of other rows, without labels."""
        return other_rows(table, self.columns, len(self.mean), root)

    def build_model(self, spec: ModelSpec) -> nn.Module:
        """An ``mlp`` that standardizes the features."""
        return build_mlp(spec, **self.sizes, mean=self.mean, std=self.std)


def load_streamed(spec: JobSpec) -> tuple[StreamedFeatures, StreamedFeatures]:
    """Training and test rows, as many as the spec allows.

    Raises:
        DataError: a file is missing or damaged, a column is missing, or a label is no class.
        SampleError: a cell is no number; its file and row are named.
    """
    data, label = spec.data, spec.data.columns.label
    shown = first_block(data, Columns(label, data.columns.features))
    names = tuple(data.columns.features or numeric_columns(shown, label, f"data.root = {data.root}"))
    train, test = load_stream(data, Columns(label, names))
    train, test = first(train, data.train_limit), first(test, data.test_limit)
    mean, std = moments(_numbers(train, names, train.spread()))
    return StreamedFeatures(train, names, mean, std), StreamedFeatures(test, names, mean, std)


def _numbers(rows: StreamRows, columns: tuple[str, ...], ids: NDArray[np.int64]) -> Tensor:
    try:
        return features(rows.content(ids), columns, lambda row: rows.place(int(ids[row])))
    except DataError as error:  # it may meet one rank, in the midst of training
        raise SampleError(str(error)) from None
