"""What a trained model says of files: the classes of images, the continuation of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.data.decode import decode
from jobs.data.errors import DataError
from jobs.data.transforms import Pipeline
from jobs.errors import JobError
from jobs.init.weights import load_weights
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec
from jobs.torchvision_compat import import_torchvision
from jobs.workloads import load_workload
from jobs.workloads.huggingface import CausalLanguageModel
from jobs.workloads.huggingface_texts import TextClassifier
from jobs.workloads.vision import VisionWorkload

import_torchvision()
from torchvision.transforms import v2  # noqa: E402


class Prediction(NamedTuple):
    """The likeliest classes of one file, and how likely each is."""

    file: Path
    classes: list[str]
    probabilities: list[float]

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "file": str(self.file)}

    def line(self) -> str:
        """The classes of the file."""
        words = (f"{name} {p:.1%}" for name, p in zip(self.classes, self.probabilities, strict=True))
        return f"{self.file}: {', '.join(words)}"


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
        files: images; texts for a model of Hugging Face that classifies or continues them.
        top: how many classes.

    Raises:
        JobError: the job does neither.
        DataError: it has no good checkpoint, or its data or a file cannot be read.
    """
    spec = JobSpec.load(RunDir(folder).spec)
    workload = load_workload(spec)
    if not isinstance(workload, VisionWorkload | CausalLanguageModel | TextClassifier):
        raise JobError(
            f"{folder}: predict classifies images, or continues texts with workload huggingface, and its "
            f"workload is {spec.workload}"
        )
    model = workload.build_model()
    load_weights(model, folder)
    model.eval()
    for file in files:
        if isinstance(workload, VisionWorkload):
            yield _classified(workload, model, file, top)
        elif isinstance(workload, TextClassifier):
            yield _judged(workload, model, file, top)
        else:
            yield _continued(workload, model, file)


def _judged(workload: TextClassifier, model: nn.Module, file: Path, top: int) -> Prediction:
    with torch.inference_mode():
        found = model(**workload.tokens([_text(file)])).logits[0].float().softmax(0)
    best = found.topk(min(top, len(found)))
    return Prediction(file, [workload.classes[at] for at in best.indices], best.values.tolist())


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None


def _classified(workload: VisionWorkload, model: nn.Module, file: Path, top: int) -> Prediction:
    image = _sized(decode(file), workload.pipeline, channels=int(workload.model_sizes["channels"]))
    with torch.inference_mode():
        found = workload.scores(model, workload.pipeline.normalize(image).unsqueeze(0))[0].softmax(0)
    best = found.topk(min(top, len(found)))
    return Prediction(file, [workload.classes[at] for at in best.indices], best.values.tolist())


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
