"""An image classifier of Hugging Face, on the data sets of the workload vision."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from jobs.data.errors import DataError
from jobs.models import huggingface
from jobs.spec.data import DataSpec, NormalizeSpec
from jobs.spec.job_spec import JobSpec
from jobs.workloads.vision import VisionWorkload


class ImageClassifier(VisionWorkload):
    """Cross-entropy on labelled images, in the size and with the normalization of the model's processor."""

    def __init__(self, spec: JobSpec) -> None:
        if spec.data.path is not None:
            raise DataError("data.path is for text, and the model classifies images: write data.root")
        config = huggingface.read("AutoConfig", spec.model)
        super().__init__(spec.model_copy(update={"data": _as_processed(spec, config)}))
        self._channels = int(getattr(config, "num_channels", 3))
        if spec.model.lora and (base := huggingface.base_digest(spec.model)):
            self.fingerprint += f", model {base}"

    def build_model(self) -> nn.Module:
        """The model of the spec; a head for other classes than its own is initialized from the seed."""
        spec = self._spec
        return huggingface.build(
            spec.model, huggingface.IMAGES, seed=spec.seed, classes=[str(name) for name in self.classes]
        )

    def scores(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits [N, classes]; grey images are given to each channel of the model."""
        if images.shape[1] == 1:
            images = images.expand(-1, self._channels, -1, -1)
        found: Tensor = model(pixel_values=images).logits
        return found


def _as_processed(spec: JobSpec, config: Any) -> DataSpec:
    """``data`` with the size and the normalization of the model's processor, where the spec names none."""
    data, changes = spec.data, dict[str, Any]()
    try:
        processor = huggingface.read("AutoImageProcessor", spec.model)
    except DataError:
        processor = None  # a folder with a configuration alone
    if data.image_size is None and (size := _size(processor) or getattr(config, "image_size", None)):
        changes["image_size"] = size if isinstance(size, int) else int(size[0])
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if data.normalize == "auto" and mean and std and getattr(processor, "do_normalize", True):
        changes["normalize"] = NormalizeSpec(mean=tuple(mean), std=tuple(std))
    return data.model_copy(update=changes)


def _size(processor: Any) -> int | None:
    """Height and width of the images that the model gets."""
    for name in ("crop_size", "size"):
        size = getattr(processor, name, None)
        if name == "crop_size" and not getattr(processor, "do_center_crop", False):
            continue
        for key in ("height", "shortest_edge"):
            value = size.get(key) if isinstance(size, dict) else getattr(size, key, None)
            if value:
                return int(value)
    return None
