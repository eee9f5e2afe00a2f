"""What a trained model says of files: the classes of images, rows and texts, the continuation of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.data.decode import decode
from jobs.data.errors import DataError
from jobs.data.tables import column_names, read_splits
from jobs.data.transforms import Pipeline
from jobs.errors import JobError
from jobs.init.weights import load_weights
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec
from jobs.torchvision_compat import import_torchvision
from jobs.workloads import load_workload
from jobs.workloads.huggingface import CausalLanguageModel
from jobs.workloads.huggingface_texts import TextClassifier
from jobs.workloads.tabular import TabularWorkload
from jobs.workloads.vision import VisionWorkload

import_torchvision()
from torchvision.transforms import v2  # noqa: E402

_ROWS = 4096


class Prediction(NamedTuple):
    """The likeliest classes of one file or one row of a table, and how likely each is."""

    file: Path
    classes: list[str]
    probabilities: list[float]
    row: int | None = None
    """From 1; None for a whole file."""

    def to_dict(self) -> dict[str, Any]:
        found = {**self._asdict(), "file": str(self.file)}
        return {name: value for name, value in found.items() if value is not None}

    def line(self) -> str:
        """The classes of the file."""
        words = (f"{name} {p:.1%}" for name, p in zip(self.classes, self.probabilities, strict=True))
        place = self.file if self.row is None else f"{self.file}:{self.row}"
        return f"{place}: {', '.join(words)}"


class Continuation(NamedTuple):
    """A text, how well a language model predicts it, and what it writes after it.

    Attributes:
        file: the text; its last tokens, as many as the model sees, are read.
        perplexity: of these tokens, each after those before it.
        text: the continuation.
    """

    file: Path
    perplexity: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "file": str(self.file)}

    def line(self) -> str:
        """Both figures of the file."""
        return f"{self.file}: perplexity {self.perplexity:.4g}, continued with {self.text!r}"


def predict(folder: Path, files: Sequence[Path], *, top: int = 1) -> Iterator[Prediction | Continuation]:
    """Classifies images, or continues texts, with the newest good checkpoint of a job.

    Args:
        folder: of the job; its data are read for the size and the normalization of images.
        files: images; texts for a model that classifies or continues them; tables for workload tabular, each
            row of which is classified.
        top: how many classes.

    Raises:
        JobError: the job does neither.
        DataError: it has no good checkpoint, or its data or a file cannot be read.
    """
    spec = JobSpec.load(RunDir(folder).spec)
    workload = load_workload(spec)
    if not isinstance(workload, VisionWorkload | TabularWorkload | CausalLanguageModel | TextClassifier):
        raise JobError(
            f"{folder}: predict classifies images, rows and texts, or continues texts with workload "
            f"huggingface, and its workload is {spec.workload}"
        )
    model = workload.build_model()
    load_weights(model, folder)
    model.eval()
    for file in files:
        if isinstance(workload, VisionWorkload):
            yield _classified(workload, model, file, top)
        elif isinstance(workload, TabularWorkload):
            yield from _rows(workload, model, file, top)
        elif isinstance(workload, TextClassifier):
            yield _judged(workload, model, file, top)
        else:
            yield _continued(workload, model, file)


def _rows(workload: TabularWorkload, model: nn.Module, file: Path, top: int) -> Iterator[Prediction]:
    """Of each row of a table, or of a file of text as a whole."""
    whole = workload.reads_texts and column_names(file) is None
    if whole:
        table = pa.table({workload.columns[0]: [_text(file)]})
    else:
        table, _ = read_splits(file, str(file), workload.columns)
    with torch.inference_mode():
        scores = torch.cat([model(inputs) for inputs in workload.read(table, file).split(_ROWS)])
    for row, found in enumerate(scores, 1):
        yield _likeliest(file, workload.classes, found, top, row=None if whole else row)


def _likeliest(
    file: Path, classes: Sequence[str], scores: Tensor, top: int, row: int | None = None
) -> Prediction:
    best = scores.float().softmax(0).topk(min(top, len(classes)))
    return Prediction(file, [classes[at] for at in best.indices], best.values.tolist(), row)


def _judged(workload: TextClassifier, model: nn.Module, file: Path, top: int) -> Prediction:
    with torch.inference_mode():
        scores = model(**workload.tokens([_text(file)])).logits[0]
    return _likeliest(file, workload.classes, scores, top)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None


def _classified(workload: VisionWorkload, model: nn.Module, file: Path, top: int) -> Prediction:
    image = _sized(decode(file), workload.pipeline, channels=int(workload.model_sizes["channels"]))
    with torch.inference_mode():
        scores = workload.scores(model, workload.pipeline.normalize(image).unsqueeze(0))[0]
    return _likeliest(file, workload.classes, scores, top)


def _continued(workload: CausalLanguageModel, model: nn.Module, file: Path) -> Continuation:
    ids = torch.tensor(workload.tokenizer(_text(file), verbose=False)["input_ids"], dtype=torch.int64)
    ids = ids[-workload.tokens_per_sample :]
    if len(ids) < 2:
        raise DataError(f"{file}: a text of two or more tokens is needed")
    with torch.inference_mode():
        logits = workload.scores(model, ids[None])[0, :-1].float()
    loss = functional.cross_entropy(logits, ids[1:]).item()
    return Continuation(file, workload.perplexity(loss), workload.write(model, ids))


def _sized(pixels: Tensor, pipeline: Pipeline, *, channels: int) -> Tensor:
    """uint8 [C, H, W] as the model sees it; grey where it was trained on grey."""
    if channels == 1:
        pixels = v2.functional.rgb_to_grayscale(pixels)
    fixed = pipeline.fixed or v2.Compose([v2.Resize(pipeline.size), v2.CenterCrop(pipeline.size)])
    sized: Tensor = fixed(pixels)
    return sized
