"""Images and labels in tar files, as WebDataset writes them: ``0001.jpg`` and ``0001.cls`` are one sample.

The tars are indexed once; a sample is read at its place in its tar, so that the order of the samples, and a
resume, are as exact as with single files.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from jobs.data.errors import DataError
from jobs.data.images import hold_out, spread_rows
from jobs.data.streams.tars import IMAGES, Found, label_order, samples_of
from jobs.data.tables import HELD_OUT, TRAIN
from jobs.spec.data import DataSpec


@dataclass(frozen=True, slots=True, eq=False)
class TarImages:
    """Image files in tars.

    Attributes:
        shards: the tars.
        keys: of the samples, for messages.
        places: int64, shape [N, 3]: the tar, the first byte in it, and the size of each image.
        labels: int64, shape [N], each an index into ``classes``.
        classes: the names of the classes.
        name: the data set, for messages.
    """

    shards: tuple[Path, ...]
    keys: tuple[str, ...]
    places: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Red, green and blue."""
        return 3

    def fingerprint(self) -> str:
        """Identifies the samples and their order, by all keys, labels and sizes, and some of the files."""
        digest = zlib.crc32("\n".join(self.keys).encode(errors="surrogateescape"))
        for numbers in (self.labels, self.places):
            digest = zlib.crc32(numbers.contiguous().numpy().data, digest)
        for row in spread_rows(len(self)).tolist():
            digest = zlib.crc32(self._content(row), digest)
        return f"{len(self)} images, {digest:08x}"

    def pixels(self, row: int) -> Tensor:
        """One image, uint8 [3, H, W].

        Raises:
            SampleError: it is broken; its tar and key are named.
        """
        from jobs.data.decode import decode  # imports torchvision, which takes a second

        return decode(
            BytesIO(self._content(row)), f"{self.shards[int(self.places[row, 0])]}: {self.keys[row]}"
        )

    def chosen(self, rows: Tensor) -> Self:
        """Only these samples."""
        keys = tuple(self.keys[row] for row in rows.tolist())
        return replace(self, keys=keys, places=self.places[rows], labels=self.labels[rows])

    def _content(self, row: int) -> bytes:
        shard, offset, size = self.places[row].tolist()
        try:
            with self.shards[shard].open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError:
            return b""  # broken, as a file that is gone


def load_tars(config: DataSpec) -> tuple[TarImages, TarImages]:
    """Training and test split; classes are the labels of the training tars, in their order.

    Raises:
        DataError: there is no tar, one cannot be read at a sample, or a sample has no label.
    """
    root = Path(config.root or "").expanduser()
    train, test = _splits(root)
    found = list(_samples(train, config.columns.label))
    if not found:
        raise DataError(f"{root}: its tars have no sample with an image ({', '.join(IMAGES)})")
    classes = tuple(sorted({sample.label for sample in found}, key=label_order))
    if len(classes) < 2:
        raise DataError(f"{root}: all samples have the label {classes[0]!r}: it takes two classes or more")
    images = _images(train, found, classes, root)
    if not test:
        return hold_out(images, config.val_share, config.split_seed, str(root))
    return images, _images(test, list(_samples(test, config.columns.label)), classes, root)


def _splits(root: Path) -> tuple[list[Path], list[Path]]:
    """The tars for training and for evaluation; none of the latter where no name says so."""
    if root.is_file():
        return [root], []
    tars = sorted([*root.glob("*.tar"), *root.glob("*/*.tar")])
    packed = sorted([*root.glob("*.tar.*"), *root.glob("*.tgz")])
    if not tars:
        hint = f"; {packed[0].name} is compressed: unpack it to .tar" if packed else ""
        raise DataError(f"data.root = {root}: name a .tar file, or a folder of them{hint}")
    words = {path: set(re.split(r"[^a-z]+", str(path.relative_to(root)).lower())) for path in tars}
    first = next((word for word in HELD_OUT if any(word in found for found in words.values())), "")
    held_out = [path for path in tars if words[path].intersection(HELD_OUT)]
    named = [path for path in tars if words[path].intersection(TRAIN) and path not in held_out]
    train = named or [path for path in tars if path not in held_out]
    if not train:
        raise DataError(f"data.root = {root}: all tars are named as held-out data: name some train-*.tar")
    return train, [path for path in held_out if first in words[path]]


def _samples(shards: Sequence[Path], label: str) -> Iterator[Found]:
    for number, shard in enumerate(shards):
        try:
            with shard.open("rb") as file:
                yield from samples_of(file, label, str(shard), number)
        except (tarfile.TarError, OSError) as error:
            how = "; a compressed tar must be unpacked first" if shard.suffix != ".tar" else ""
            raise DataError(f"{shard}: is no tar that can be read: {error}{how}") from error


def _images(shards: Sequence[Path], found: list[Found], classes: tuple[str, ...], root: Path) -> TarImages:
    numbers = {label: number for number, label in enumerate(classes)}
    for sample in found:
        if sample.label not in numbers:
            where = f"{shards[sample.shard]}: {sample.key}"
            raise DataError(f"{where}: label {sample.label!r} is no class of the training data")
    places = torch.tensor([[s.shard, s.offset, s.size] for s in found], dtype=torch.int64).reshape(-1, 3)
    labels = torch.tensor([numbers[sample.label] for sample in found], dtype=torch.int64)
    return TarImages(tuple(shards), tuple(s.key for s in found), places, labels, classes, str(root))
