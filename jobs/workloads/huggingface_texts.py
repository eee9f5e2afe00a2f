"""A text classifier of Hugging Face, on a table with a column of texts and one of labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.data.errors import DataError, SampleError
from jobs.data.images import first
from jobs.data.streams.formats import Columns
from jobs.data.streams.rows import StreamRows, load_stream
from jobs.models import huggingface
from jobs.spec.job_spec import JobSpec
from jobs.workloads.class_scores import class_metrics, class_sums, confusion_matrix
from jobs.workloads.labelled_texts import LabelledTexts, load_texts
from jobs.workloads.losses import cross_entropy
from jobs.workloads.streamed import Streamed

_CONTEXT, _EVAL_BATCH = 512, 64


Texts = LabelledTexts | StreamRows


class TextClassifier(Streamed):
    """Cross-entropy on labelled texts; fulfils ``jobs.workloads.base.Workload``.

    Attributes:
        n_train: training texts.
        classes: their names, in the order of the outputs.
        tokenizer: of the model's folder.
        tokens_per_sample: at most; what is longer is cut off.
        fingerprint: identifies the training data, and the frozen model of an adapter.
        model_sizes: the most tokens of a text.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        if spec.data.root is None or spec.data.dataset != "table":
            message = "the model classifies texts: write data.dataset: table and data.root, a table with them"
            raise DataError(f"{message}; data.columns names its columns")
        config = huggingface.read("AutoConfig", spec.model)
        self.tokenizer = huggingface.read("AutoTokenizer", spec.model)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        longest = getattr(config, "max_position_embeddings", None) or _CONTEXT
        self.tokens_per_sample = spec.model.context or min(longest, _CONTEXT)
        if self.tokens_per_sample > longest:
            raise DataError(
                f"model.context = {spec.model.context}: the model has places for {longest} tokens"
            )
        self._train, self._test = _load(spec)
        self.n_train, self.classes = len(self._train), self._train.classes
        self.dataset = Path(self._train.name).name
        self._follow(self._train)
        self.model_sizes = {"tokens": self.tokens_per_sample}
        base = huggingface.base_digest(spec.model) if spec.model.lora else ""
        self.fingerprint = self._train.fingerprint() + (f", model {base}" if base else "")

    @property
    def class_counts(self) -> dict[str, int]:
        """Training samples by class."""
        counts = torch.bincount(self._train.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    def describe_sample(self, sample: int) -> str:
        """Its class and its beginning."""
        text = self._texts(self._train, np.array([sample]))[0]
        return f"{self.classes[int(self._train.labels[sample])]}: {text[:60]}"

    def build_model(self) -> nn.Module:
        """The model of the spec; a head for other classes than its own is initialized from the seed."""
        spec, names = self._spec, [str(name) for name in self.classes]
        model = huggingface.build(spec.model, huggingface.TEXTS, seed=spec.seed, classes=names)
        config: Any = model.config
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id
        return model

    def train_batch(
        self, ids: NDArray[np.int64], epoch: int, device: torch.device | str
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Token ids and mask, int64 [N, tokens] each, padded to the longest text; labels, int64 [N]."""
        del epoch  # the same texts in each
        self._expect(ids)
        return self._batch(self._train, ids, device)

    def _batch(
        self, data: Texts, ids: NDArray[np.int64], device: torch.device | str
    ) -> tuple[dict[str, Tensor], Tensor]:
        tokens = self.tokens(self._texts(data, ids))
        tensors = {name: tensor.to(device) for name, tensor in tokens.items()}
        return tensors, data.labels[torch.tensor(ids)].to(device)

    def _texts(self, data: Texts, ids: NDArray[np.int64]) -> list[str]:
        if isinstance(data, LabelledTexts):
            return [data.texts[row] for row in ids.tolist()]
        texts: list[Any] = data.content(ids).column(0).to_pylist()
        for row, text in zip(ids.tolist(), texts, strict=True):
            if not isinstance(text, str):
                raise SampleError(f"{data.place(row)}: the text is {text!r}: it takes texts")
        return texts

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """Token ids and mask, int64 [N, tokens] each, as the model sees these texts."""
        settings = {"padding": True, "truncation": True, "max_length": self.tokens_per_sample}
        found = self.tokenizer(texts, return_tensors="pt", **settings)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def loss(self, model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        """Mean cross-entropy in nats, with the label smoothing and the z-loss of the spec."""
        own, (tokens, labels) = self._spec.regularize, batch
        smoothing, z_loss = own.label_smoothing, own.z_loss
        return cross_entropy(model(**tokens).logits, labels, label_smoothing=smoothing, z_loss=z_loss)

    def evaluate(
        self, model: nn.Module, rank: int, world_size: int, device: torch.device | str
    ) -> dict[str, float]:
        """Correct answers, loss, number and classes of the test texts ``rank, rank + world_size, ...``."""
        own = np.arange(rank, len(self._test), world_size)
        parts = (own[start : start + _EVAL_BATCH] for start in range(0, len(own), _EVAL_BATCH))
        read = (self._batch(self._test, part, device) for part in parts)
        batches = ((model(**tokens).logits, labels) for tokens, labels in read)
        return class_sums(model, batches, len(self.classes), device)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy, mean loss, top-5 accuracy and macro F1 over the test texts."""
        count = max(sums["count"], 1.0)
        found = {"test_accuracy": sums["correct"] / count, "test_loss": sums["loss_sum"] / count}
        return {**found, **class_metrics(sums, len(self.classes))}

    def confusion(self, sums: Mapping[str, float]) -> list[list[int]] | None:
        """The confusion matrix, a row for each true class; None with more than 32 classes."""
        return confusion_matrix(sums, len(self.classes))


def _load(spec: JobSpec) -> tuple[Texts, Texts]:
    """Training and test texts, as many as the spec allows.

    Raises:
        DataError: see ``load_texts`` and ``load_stream``.
    """
    data, text = spec.data, spec.data.columns.text or "text"
    if data.stream is None:
        return load_texts(spec)
    train, test = load_stream(data, Columns(data.columns.label, (text,), text=(text,)))
    return first(train, data.train_limit), first(test, data.test_limit)
