"""Reads and augments samples: the part of making a batch that can be prefetched in another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.errors import SampleError
from jobs.data.images import ImageData, Images
from jobs.data.mixing import Mix, Mixer
from jobs.data.transforms import Pipeline

if TYPE_CHECKING:
    from jobs.spec.data import DataSpec

_MOST_BROKEN = 100


class ReadRequest(NamedTuple):
    """A request to read samples.

    Attributes:
        split: from which samples.
        epoch: for which training samples are augmented.
        ids: of the samples.
    """

    split: Literal["train", "test"]
    epoch: int
    ids: NDArray[np.int64]

    def same(self, other: ReadRequest) -> bool:
        """Whether both request the same samples."""
        return self[:2] == other[:2] and np.array_equal(self.ids, other.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """N samples as bytes, augmented, in the size in which the model sees them.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        mix: what to mix in; None for nothing.
        broken: one line for each image that could not be read.
    """

    images: Tensor
    labels: Tensor
    mix: Mix | None
    broken: tuple[str, ...]

    def pin_memory(self) -> Samples:
        """In page-locked memory; a data loader calls it."""
        mix = None if self.mix is None else self.mix.pin_memory()
        return Samples(self.images.pin_memory(), self.labels.pin_memory(), mix, self.broken)


class ImageReader:
    """The training and the test images of a job, sized and augmented.

    A sample's augmentation depends on ``(seed, epoch, sample id)`` alone: it is the same for every number and
    order of ranks, micro-batches and loader workers, and does not touch the global random number generators.
    Where an image file is broken and ``on_broken`` is ``skip``, the next readable one of the data set
    replaces it, on every rank alike.

    Attributes:
        train: training images as stored.
        test: test images as stored.
        pipeline: the transforms of both.
    """

    def __init__(self, train: Images, test: Images, config: DataSpec, *, seed: int) -> None:
        self.train, self.test = train, test
        self.pipeline = Pipeline(train, config)
        self._skip = config.on_broken == "skip"
        self._seed = seed
        self._mixer: Mixer | None = None
        if (augment := config.augmentation) is not None and augment.mixes:
            batch_size, size = config.batch_size, self.pipeline.size
            self._mixer = Mixer(augment, n_samples=len(train), batch_size=batch_size, seed=seed, size=size)

    def read(self, request: ReadRequest) -> Samples:
        """The requested samples.

        Raises:
            SampleError: an image is broken, and is not to be skipped.
        """
        if request.split == "test":
            return self._fixed(self.test, request.ids)
        if self._mixer is None:
            return self._training(request.ids, request.epoch)
        return self._mixed(self._mixer, request.ids, request.epoch)

    def _mixed(self, mixer: Mixer, ids: NDArray[np.int64], epoch: int) -> Samples:
        """A partner that is in ``ids`` too is read once."""
        draw = mixer.draw(ids, epoch)
        wanted, places = np.unique(np.concatenate([ids, draw.partners]), return_inverse=True)
        read = self._training(wanted, epoch)
        own, other = torch.from_numpy(places).split(len(ids))
        share, boxes = torch.from_numpy(draw.share), torch.from_numpy(draw.boxes)
        mix = Mix(read.images[other], read.labels[other], share, boxes)
        return Samples(read.images[own], read.labels[own], mix, read.broken)

    def _training(self, ids: NDArray[np.int64], epoch: int) -> Samples:
        augment = self.pipeline.random
        if augment is None:
            return self._fixed(self.train, ids, replace=True)
        found = [self._pixels(self.train, int(sample), replace=True) for sample in ids]
        images = []
        with torch.random.fork_rng(devices=[]):
            for (pixels, _, _), sample in zip(found, ids, strict=True):
                # Only the CPU generator: torch.manual_seed would reseed the GPU generators too.
                torch.default_generator.manual_seed(_sample_seed(self._seed, epoch, int(sample)))
                images.append(augment(pixels))
        return _samples(self.train, torch.stack(images), found)

    def _fixed(self, source: Images, ids: NDArray[np.int64], *, replace: bool = False) -> Samples:
        """Nothing random; images of one size in memory go through it all at once."""
        size = self.pipeline.fixed
        if isinstance(source, ImageData):
            rows = torch.from_numpy(ids.copy())
            images = source.images[rows]
            return Samples(images if size is None else size(images), source.labels[rows], None, ())
        found = [self._pixels(source, int(sample), replace=replace) for sample in ids]
        kept = [pixels if size is None else size(pixels) for pixels, row, _ in found if row >= 0]
        side = self.pipeline.size
        images = torch.stack(kept) if kept else torch.empty(0, source.channels, side, side, dtype=torch.uint8)
        return _samples(source, images, found)

    def _pixels(self, source: Images, sample: int, *, replace: bool) -> _Found:
        """An image, or the next readable one; without ``replace`` a broken one has the row -1."""
        broken: list[str] = []
        for row in range(sample, sample + _MOST_BROKEN):
            try:
                return _Found(source.pixels(row % len(source)), row % len(source), tuple(broken))
            except SampleError as error:
                if not self._skip:
                    raise SampleError(f"{error}; data.on_broken: skip continues without it") from None
                broken.append(str(error))
            if not replace:
                return _Found(torch.empty(0), -1, tuple(broken))
        raise SampleError(f"{broken[0]}; and so are the {_MOST_BROKEN - 1} images after it")


class _Found(NamedTuple):
    pixels: Tensor
    row: int
    broken: tuple[str, ...]


def _samples(source: Images, images: Tensor, found: Sequence[_Found]) -> Samples:
    labels = source.labels[torch.tensor([row for _, row, _ in found if row >= 0], dtype=torch.int64)]
    return Samples(images, labels, None, tuple(line for _, _, broken in found for line in broken))


def _sample_seed(seed: int, epoch: int, sample: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, sample]).generate_state(1, np.uint64)[0])
