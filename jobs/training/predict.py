"""What a trained model says of image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jobs.data.decode import decode
from jobs.data.transforms import Pipeline
from jobs.errors import JobError
from jobs.init.weights import load_weights
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec
from jobs.torchvision_compat import import_torchvision
from jobs.workloads import load_workload
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


def predict(folder: Path, files: Sequence[Path], *, top: int = 1) -> Iterator[Prediction]:
    """Classifies images with the newest good checkpoint of a job, as its evaluation would.

    Args:
        folder: of the job; its data are read for the size and the normalization of images.
        files: images.
        top: how many classes.

    Raises:
        JobError: the job does not classify images.
        DataError: it has no good checkpoint, or its data or a file cannot be read.
    """
    spec = JobSpec.load(RunDir(folder).spec)
    workload = load_workload(spec)
    if not isinstance(workload, VisionWorkload):
        raise JobError(f"{folder}: predict classifies images, and its workload is {spec.workload}")
    model = workload.build_model()
    load_weights(model, folder)
    model.eval()
    for file in files:
        image = _sized(decode(file), workload.pipeline, channels=int(workload.model_sizes["channels"]))
        with torch.inference_mode():
            found = model(workload.pipeline.normalize(image).unsqueeze(0))[0].softmax(0)
        best = found.topk(min(top, len(found)))
        yield Prediction(file, [workload.classes[at] for at in best.indices], best.values.tolist())


def _sized(pixels: Tensor, pipeline: Pipeline, *, channels: int) -> Tensor:
    """uint8 [C, H, W] as the model sees it; grey where it was trained on grey."""
    if channels == 1:
        pixels = v2.functional.rgb_to_grayscale(pixels)
    fixed = pipeline.fixed or v2.Compose([v2.Resize(pipeline.size), v2.CenterCrop(pipeline.size)])
    sized: Tensor = fixed(pixels)
    return sized
