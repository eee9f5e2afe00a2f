"""The built-in classification of the rows of a table: of numbers, or of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.spec.job_spec import JobSpec
from jobs.workloads.class_scores import class_metrics, class_sums, confusion_matrix
from jobs.workloads.feature_rows import FeatureRows, load_rows
from jobs.workloads.losses import cross_entropy
from jobs.workloads.streamed import Streamed
from jobs.workloads.streamed_features import StreamedFeatures, load_streamed
from jobs.workloads.word_rows import WordRows, load_words

_EVAL_ROWS = 4096


Rows = FeatureRows | StreamedFeatures | WordRows


class TabularWorkload(Streamed):
    """Cross-entropy on rows of a table; fulfils ``jobs.workloads.base.Workload``.

    Attributes:
        n_train: training rows.
        classes: their names, in the order of the outputs.
        columns: those that the model sees, in the order of its inputs.
        fingerprint: identifies the training data.
        model_sizes: what the size of the model follows from.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        train, test = _loader(spec)(spec)
        self._train, self._test, self.columns = train, test, train.columns
        self.n_train, self.classes = len(train), train.classes
        self.dataset = Path(train.name).name
        self.fingerprint = self._train.fingerprint()
        self.model_sizes = train.sizes
        if isinstance(train, StreamedFeatures):
            self._follow(train.rows)

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
        """``model.layers`` hidden layers of ``model.width`` with ReLU, on standardized features or on the
        mean of the words' vectors."""
        return self._train.build_model(self._spec.model)

    @property
    def reads_texts(self) -> bool:
        """Whether its rows are texts."""
        return isinstance(self._train, WordRows)

    def read(self, table: pa.Table, root: Path) -> Tensor:
        """The inputs of other rows, which need no label; ``root`` is their file, for messages.

        Raises:
            DataError: a cell is no number, or no text.
        """
        return self._train.read(table, root)

    def train_batch(
        self, ids: NDArray[np.int64], epoch: int, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Features, float32 [N, features], or words, int64 [N, words], and labels, int64 [N]."""
        del epoch  # the same rows in each
        self._expect(ids)
        rows = torch.tensor(ids)
        return self._train.inputs(rows).to(device), self._train.labels[rows].to(device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats, with the label smoothing and the z-loss of the spec."""
        own, (features, labels) = self._spec.regularize, batch
        smoothing, z_loss = own.label_smoothing, own.z_loss
        return cross_entropy(model(features), labels, label_smoothing=smoothing, z_loss=z_loss)

    def evaluate(
        self, model: nn.Module, rank: int, world_size: int, device: torch.device | str
    ) -> dict[str, float]:
        """Correct answers, loss, number and classes of the test rows ``rank, rank + world_size, ...``."""
        test, own = self._test, torch.arange(rank, len(self._test), world_size)
        batches = (
            (model(test.inputs(rows).to(device)), test.labels[rows].to(device))
            for rows in own.split(_EVAL_ROWS)
        )
        return class_sums(model, batches, len(self.classes), device)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy, mean loss, top-5 accuracy and macro F1 over the test rows."""
        count = max(sums["count"], 1.0)
        found = {"test_accuracy": sums["correct"] / count, "test_loss": sums["loss_sum"] / count}
        return {**found, **class_metrics(sums, len(self.classes))}

    def confusion(self, sums: Mapping[str, float]) -> list[list[int]] | None:
        """The confusion matrix, a row for each true class; None with more than 32 classes."""
        return confusion_matrix(sums, len(self.classes))


def _loader(spec: JobSpec) -> Callable[[JobSpec], tuple[Rows, Rows]]:
    """What loads the data: rows of numbers, the same as a stream, or texts."""
    if spec.data.columns.text is not None:
        return load_words
    return load_rows if spec.data.stream is None else load_streamed
