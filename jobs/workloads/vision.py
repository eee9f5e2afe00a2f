"""The built-in image classification: a torchvision model on a data set by name or on a folder of images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.data import DataCursor, load_images
from jobs.data.images import ImageData, ImageFiles
from jobs.data.prefetch import Prefetcher, plan_of
from jobs.data.reader import ImageReader, ReadRequest, Samples
from jobs.data.transforms import Pipeline
from jobs.models.vision import build_model
from jobs.spec.job_spec import JobSpec
from jobs.workloads.class_scores import class_metrics, class_sums, confusion_matrix
from jobs.workloads.losses import cross_entropy
from jobs.workloads.streamed import Streamed

_log = logging.getLogger(__name__)

_EVAL_BATCH = 500
_EVAL_PIXELS = 500 * 64 * 64
_GPU_WORKERS = 4


class VisionWorkload(Streamed):
    """Cross-entropy on labelled images; fulfils ``jobs.workloads.base.Workload``.

    Attributes:
        n_train: training samples.
        classes: their names, in the order of the outputs.
        dataset: the name of the data set that was found.
        fingerprint: identifies the training data.
        model_sizes: arguments of ``build_model`` that follow from the data.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        train, test = load_images(spec.data)
        self._reader = ImageReader(train, test, spec.data, seed=spec.seed)
        self._ahead: Prefetcher | None = None
        self._skipped = 0
        self.n_train, self.classes = len(train), train.classes
        self.dataset = getattr(train, "name", spec.data.dataset)
        self.fingerprint = train.fingerprint()
        self._follow(train)
        self.model_sizes = {
            "channels": train.channels,
            "classes": len(train.classes),
            "image_size": self._reader.pipeline.size,
        }

    @property
    def normalization(self) -> dict[str, list[float]]:
        """``mean`` and ``std`` of each channel, for pixels from 0 to 1."""
        pipeline = self._reader.pipeline
        return {"mean": [float(mean) for mean in pipeline.mean], "std": [float(std) for std in pipeline.std]}

    @property
    def pipeline(self) -> Pipeline:
        """What images go through before the model."""
        return self._reader.pipeline

    @property
    def class_counts(self) -> dict[str, int]:
        """Training samples by class."""
        counts = torch.bincount(self._reader.train.labels, minlength=len(self.classes)).tolist()
        return dict(zip(map(str, self.classes), counts, strict=True))

    def describe_sample(self, sample: int) -> str:
        """Its file or place, or else its class."""
        if self._stream is not None:
            return self._stream.place(sample)
        images = self._reader.train
        kind = f"{images.classes[int(images.labels[sample])]}, {images.name}"
        return images.paths[sample] if isinstance(images, ImageFiles) else kind

    def build_model(self) -> nn.Module:
        """The spec's model for these images and classes."""
        return build_model(self._spec.model, **self.model_sizes, seed=self._spec.seed)

    def read_ahead(self, cursor: DataCursor, rank: int, world_size: int, device: torch.device | str) -> None:
        """From now on ``data.workers`` processes, or for a stream Ray, read what this cursor will ask for;
        ``close`` ends it."""
        super().read_ahead(cursor, rank, world_size, device)
        on_gpu = torch.device(device).type == "cuda"
        workers, in_memory = self._spec.data.workers, isinstance(self._reader.train, ImageData)
        if workers is None:
            workers = _GPU_WORKERS if on_gpu and not in_memory and self._stream is None else 0
        if workers:
            parts = self._spec.train.micro_batches
            plan = plan_of(cursor, rank, world_size, parts)
            self._ahead = Prefetcher(self._reader, workers=workers, plan=plan, parts=parts, pin=on_gpu)

    def close(self) -> None:
        """Ends the processes that prefetch."""
        super().close()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def train_batch(
        self, ids: NDArray[np.int64], epoch: int, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Normalised images, float32 [N, C, H, W], and labels.

        Labels are int64 [N]; with MixUp or CutMix they are shares of the classes, float32 [N, classes].
        """
        self._expect(ids)
        samples = (self._ahead or self._reader).read(ReadRequest("train", epoch, ids))
        self._skipped += self._log_broken(samples)
        images, labels = self._images(samples.images, device), samples.labels.to(device, non_blocking=True)
        if samples.mix is None:
            return images, labels
        partners = self._images(samples.mix.images, device)
        return samples.mix.into(images, partners), samples.mix.targets(labels, len(self.classes))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats, with the label smoothing and the z-loss of the spec."""
        images, labels = batch
        own = self._spec.regularize
        return cross_entropy(
            self.scores(model, images), labels, label_smoothing=own.label_smoothing, z_loss=own.z_loss
        )

    def scores(self, model: nn.Module, images: Tensor) -> Tensor:
        """The outputs of the model for normalised images, [N, classes]."""
        found: Tensor = model(images)
        return found

    def evaluate(
        self, model: nn.Module, rank: int, world_size: int, device: torch.device | str
    ) -> dict[str, float]:
        """Correct answers, loss, number and classes of the test samples ``rank, rank + world_size, ...``."""
        skipped = 0

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal skipped
            for samples in self._test_samples(rank, world_size):
                skipped += self._log_broken(samples)
                if len(samples.labels):  # else all of them are broken
                    images = self._images(samples.images, device)
                    yield self.scores(model, images), samples.labels.to(device)

        sums = class_sums(model, batches(), len(self.classes), device)
        if self._spec.data.on_broken == "skip":
            sums |= {"train_skipped": float(self._skipped), "test_skipped": float(skipped)}
        return sums

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy, mean loss, top-5 accuracy and macro F1 over the test set.

        Where broken images are skipped, ``test_skipped`` counts those of the test set, ``train_skipped`` how
        often one was replaced since the workers started.
        """
        count = max(sums["count"], 1.0)
        skipped = {key: sums[key] for key in ("train_skipped", "test_skipped") if key in sums}
        found = {"test_accuracy": sums["correct"] / count, "test_loss": sums["loss_sum"] / count}
        return {**found, **class_metrics(sums, len(self.classes)), **skipped}

    def confusion(self, sums: Mapping[str, float]) -> list[list[int]] | None:
        """The confusion matrix, a row for each true class; None with more than 32 classes."""
        return confusion_matrix(sums, len(self.classes))

    def _test_samples(self, rank: int, world_size: int) -> Iterator[Samples]:
        own = np.arange(rank, len(self._reader.test), world_size)
        size = max(1, min(_EVAL_BATCH, _EVAL_PIXELS // self._reader.pipeline.size**2))
        requests = [ReadRequest("test", 0, own[at : at + size]) for at in range(0, len(own), size)]
        return self._ahead.all(requests) if self._ahead else map(self._reader.read, requests)

    def _images(self, images: Tensor, device: torch.device | str) -> Tensor:
        images = self._reader.pipeline.normalize(images.to(device, non_blocking=True))
        last = self._spec.train.channels_last
        return images.contiguous(memory_format=torch.channels_last) if last else images

    def _log_broken(self, samples: Samples) -> int:
        for line in samples.broken:
            _log.warning("data: %s; skipped", line)
        return len(samples.broken)
