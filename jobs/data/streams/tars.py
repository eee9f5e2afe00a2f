"""The samples of a WebDataset tar: files with one name and several endings, ``0001.jpg`` and ``0001.cls``."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from jobs.data.errors import DataError

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
LABELS = ("cls", "json", "txt")
"""By precedence."""


class Found(NamedTuple):
    """One sample: its tar, its key, where its image is, its label, and where its files begin and end."""

    shard: int
    key: str
    offset: int
    size: int
    label: str
    start: int
    end: int


def samples_of(file: IO[bytes], label: str, name: str, shard: int = 0) -> Iterator[Found]:
    """The samples with an image of an open tar, or of a part of one that begins and ends between two files.

    Args:
        file: of which the headers and the labels are read.
        label: the field of a JSON label.
        name: of the tar, for messages.
        shard: its number.

    Raises:
        DataError: a sample has no label, or one that cannot be read; its key is named.
        tarfile.TarError: it is no tar.
    """
    parts: dict[str, dict[str, tarfile.TarInfo]] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            folder, _, name_in = member.name.rpartition("/")
            key, _, kind = name_in.partition(".")
            if member.isfile() and kind:
                sample = parts.setdefault(f"{folder}/{key}" if folder else key, {})
                if sample.setdefault(kind.lower(), member) is not member:
                    raise DataError(f"{name}: {member.name} is there twice: one of two samples would be lost")
    for key, members in parts.items():
        image = next((members[kind] for kind in IMAGES if kind in members), None)
        if image is None:
            continue
        found = next((kind for kind in LABELS if kind in members), None)
        if found is None:
            raise DataError(f"{name}: {key} has no label: it takes {key}.cls, .json or .txt beside the image")
        file.seek(members[found].offset_data)
        try:
            text = file.read(members[found].size).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise DataError(f"{name}: {key}.{found} is not UTF-8 text") from None
        value = _label(text, found, label, f"{name}: {key}")
        start, end = min(map(_start, members.values())), max(map(_end, members.values()))
        yield Found(shard, key, image.offset_data, image.size, value, start, end)


def label_order(label: str) -> tuple[bool, int, str]:
    """A sorting key: numbers by value, then texts."""
    whole = label.lstrip("-").isdecimal()
    return not whole, int(label) if whole else 0, label


def _start(member: tarfile.TarInfo) -> int:
    return member.offset


def _end(member: tarfile.TarInfo) -> int:
    return member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _label(text: str, kind: str, column: str, where: str) -> str:
    if kind != "json":
        if not text:
            raise DataError(f"{where}.{kind} is empty: it takes the class")
        return text
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}.json is no JSON: {error}") from None
    if isinstance(value, dict):
        if column not in value:
            known = ", ".join(value)
            raise DataError(f"{where}.json has no {column!r}; it has {known}: set data.columns.label")
        value = value[column]
    if not isinstance(value, str | int):
        raise DataError(f"{where}.json: the label is {value!r}: labels are texts or whole numbers")
    return str(value)
