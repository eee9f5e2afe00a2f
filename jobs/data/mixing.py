"""MixUp and CutMix: partners and shares, drawn for a whole global batch at once.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), section 2; Yun et al., "CutMix" (2019),
section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jobs.data.cursor import epoch_order

if TYPE_CHECKING:
    from jobs.spec.augment import AugmentSpec

_SALT = 0x6D6978


class Draw(NamedTuple):
    """How N samples are mixed.

    Attributes:
        partners: int64 [N], ids of other samples of the same global batch; the own id where nothing is mixed.
        share: float32 [N], how much of the sample itself is left: of its label, and with MixUp of each pixel.
        boxes: int64 [N, 4], top, bottom, left, right of the part that CutMix takes from the partner; empty
            where MixUp is at work.
    """

    partners: NDArray[np.int64]
    share: NDArray[np.float32]
    boxes: NDArray[np.int64]

    def rows(self, places: NDArray[np.int64]) -> Draw:
        """Only these samples."""
        return Draw(self.partners[places], self.share[places], self.boxes[places])


class Mixer:
    """Draws from ``(seed, epoch, index of the global batch)`` and the sample's place in it.

    So the same sample has the same partner and the same share for every number of ranks, micro-batches and
    loader workers, and after a resume or a rollback; another batch size makes other pairs. As a partner
    is always one of the same global batch, the samples that an incident names are all that had a part in it.

    Args:
        spec: how much is mixed.
        n_samples: of the training set.
        batch_size: samples of a global batch.
        seed: of the job, which also fixes the order of the samples.
        size: height and width of the images in pixels.
    """

    def __init__(self, spec: AugmentSpec, *, n_samples: int, batch_size: int, seed: int, size: int) -> None:
        self._spec, self._seed, self._size = spec, seed, size
        self._n, self._batch_size = n_samples, batch_size
        self._places: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def draw(self, ids: NDArray[np.int64], epoch: int) -> Draw:
        """For these samples, whichever global batches of the epoch they belong to."""
        order, place_of = self._order(epoch)
        batches, within = np.divmod(place_of[ids], self._batch_size)
        rows = [np.flatnonzero(batches == index) for index in np.unique(batches)]
        parts = [self._batch(order, epoch, int(batches[own[0]])).rows(within[own]) for own in rows]
        back = np.argsort(np.concatenate(rows))
        return Draw(*(np.concatenate(field)[back] for field in zip(*parts, strict=True)))

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples of the epoch in order, and the place of each; kept for one epoch."""
        if self._places is None or self._places[0] != epoch:
            order = epoch_order(self._n, self._seed, epoch)
            self._places = (epoch, order, np.argsort(order))
        return self._places[1:]

    def _batch(self, order: NDArray[np.int64], epoch: int, index: int) -> Draw:
        spec = self._spec
        members = order[index * self._batch_size : (index + 1) * self._batch_size]
        count = len(members)
        generator = np.random.default_rng([self._seed, epoch, index, _SALT])
        circle = generator.permutation(count)  # each takes the next one on it: none itself, none twice
        partners = np.empty(count, dtype=np.int64)
        partners[circle] = members[np.roll(circle, -1)]
        cuts = generator.random(count) < (0.0 if not spec.cutmix else 0.5 if spec.mixup else 1.0)
        mixed = generator.random(count) < spec.mix_probability
        alpha = np.where(cuts, spec.cutmix or 1.0, spec.mixup or 1.0)
        share = generator.beta(alpha, alpha)
        boxes = self._boxes(generator, share)
        boxes[~(cuts & mixed)] = 0
        area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
        share = np.where(cuts, 1 - area / self._size**2, share)
        return Draw(np.where(mixed, partners, members), np.where(mixed, share, 1.0).astype(np.float32), boxes)

    def _boxes(self, generator: np.random.Generator, share: NDArray[np.float64]) -> NDArray[np.int64]:
        """Rectangles of ``1 - share`` of the area around any pixel, cut off at the border."""
        side = np.sqrt(1 - share) * self._size / 2
        middle = generator.integers(self._size, size=(2, len(share)))
        edges = (middle[0] - side, middle[0] + side, middle[1] - side, middle[1] + side)
        return np.stack(edges, axis=1).round().astype(np.int64).clip(0, self._size)


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """The partners of a batch of N samples, read and ready to be mixed in.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        share: float32 [N], as in ``Draw``.
        boxes: int64 [N, 4], as in ``Draw``.
    """

    images: Tensor
    labels: Tensor
    share: Tensor
    boxes: Tensor

    def pin_memory(self) -> Mix:
        """In page-locked memory; a data loader calls it."""
        return Mix(*(getattr(self, name).pin_memory() for name in self.__slots__))

    def into(self, images: Tensor, partners: Tensor) -> Tensor:
        """Normalised images with the normalised images of their partners mixed in; float32 [N, C, H, W]."""
        own = self._own(images.shape[-2], images.shape[-1]).to(images.device, non_blocking=True)
        return own * images + (1 - own) * partners

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Shares of the classes, float32 [N, classes]."""
        share = self.share.to(labels.device).unsqueeze(1)
        partner = self.labels.to(labels.device)
        own, other = (functional.one_hot(index, classes).float() for index in (labels, partner))
        return share * own + (1 - share) * other

    def _own(self, height: int, width: int) -> Tensor:
        """The share of the sample itself at each pixel, float32 [N, 1, H, W]."""
        top, bottom, left, right = (edge[:, None, None] for edge in self.boxes.unbind(1))
        row, column = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
        inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        boxed = (bottom > top) & (right > left)
        share = torch.where(boxed, 1.0, self.share[:, None, None])
        return torch.where(inside, 0.0, share).unsqueeze(1)
