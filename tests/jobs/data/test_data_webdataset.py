"""WebDataset tars: the samples, their classes, exact places, and what is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.data.errors import DataError, SampleError
from jobs.data.reader import ImageReader, ReadRequest
from jobs.data.sources import load_images
from jobs.spec.data import DataSpec


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def shard(path: Path, first: int, count: int, label: str = "cls") -> None:
    members = {}
    for n in range(first, first + count):
        members[f"data/{n:04}.png"] = picture(n)
        content = str(n % 3) if label != "json" else f'{{"kind": "{"abc"[n % 3]}", "caption": "x"}}'
        members[f"data/{n:04}.{label}"] = content.encode()
    tar(path, members)


def spec(root: Path, **more: Any) -> DataSpec:
    values = {"image_size": 8, "normalize": "none", "batch_size": 4, **more}
    return DataSpec(dataset="webdataset", root=str(root), **values)


def test_each_sample_is_read_at_its_place_with_its_label(tmp_path: Path) -> None:
    shard(tmp_path / "pets-train-000.tar", 0, 6)
    shard(tmp_path / "pets-train-001.tar", 6, 4)
    shard(tmp_path / "pets-val-000.tar", 100, 3)
    train, test = load_images(spec(tmp_path))
    assert (len(train), len(test), train.classes) == (10, 3, ("0", "1", "2"))
    assert [int(train.pixels(row)[0, 0, 0]) for row in range(10)] == list(range(10))
    assert train.labels.tolist() == [n % 3 for n in range(10)]
    assert test.labels.tolist() == [n % 3 for n in range(100, 103)]
    rows = torch.tensor([7, 2])
    assert [int(train.chosen(rows).pixels(at)[0, 0, 0]) for at in range(2)] == [7, 2]
    reader = ImageReader(train, test, spec(tmp_path), seed=0)
    samples = reader.read(ReadRequest("train", 0, np.array([9, 0])))
    assert samples.labels.tolist() == [0, 0]


def test_labels_of_json_name_the_classes_and_a_part_is_held_out(tmp_path: Path) -> None:
    shard(tmp_path / "000.tar", 0, 12, label="json")
    train, test = load_images(spec(tmp_path, columns={"label": "kind"}, val_share=0.25))
    assert train.classes == ("a", "b", "c")
    assert (len(train), len(test)) == (9, 3)
    other, _ = load_images(spec(tmp_path, columns={"label": "kind"}, val_share=0.25, split_seed=5))
    assert other.fingerprint() != train.fingerprint()


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"a.png": picture(1), "a.cls": b"0", "b.png": picture(2)}, "b has no label: it takes b.cls"),
        ({"a.png": picture(1), "a.cls": b"0"}, "all samples have the label '0'"),
        ({"a.npy": b"1"}, "have no sample with an image"),
        ({"a.png": picture(1), "a.json": b'{"x": 1}'}, "has no 'label'; it has x: set data.columns.label"),
        ({"a.png": picture(1), "a.json": b"{"}, "a.json is no JSON"),
        ({"a.png": picture(1), "a.cls": b"\xff\xfe"}, "a.cls is not UTF-8 text"),
        ({"a.png": picture(1), "a.cls": b"0", "a.PNG": picture(2)}, "a.PNG is there twice"),
    ],
)
def test_what_cannot_be_a_sample_is_refused_by_name(
    tmp_path: Path, members: dict[str, bytes], line: str
) -> None:
    tar(tmp_path / "train.tar", members)
    with pytest.raises(DataError) as refused:
        load_images(spec(tmp_path))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_compressed_or_damaged_tar_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"train\.tar\.gz is compressed: unpack it"):
        load_images(spec(tmp_path))
    (tmp_path / "train.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"train\.tar: is no tar that can be read"):
        load_images(spec(tmp_path))


def test_a_stream_of_tars_has_the_same_images_under_the_same_numbers(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", 0, 9)
    shard(tmp_path / "train-1.tar", 9, 8)
    shard(tmp_path / "val-0.tar", 0, 3)
    request = ReadRequest("train", 2, np.array([16, 3, 8, 9, 0]))
    found = []
    for more in ({}, {"stream": {"lanes": 2}}):
        own = spec(tmp_path, augment="standard", **more)
        train, test = load_images(own)
        assert (len(train), len(test), train.classes) == (17, 3, ("0", "1", "2"))
        found.append(ImageReader(train, test, own, seed=4).read(request))
    assert torch.equal(found[0].images, found[1].images)
    assert torch.equal(found[0].labels, found[1].labels)


def test_a_broken_image_of_a_stream_is_named_and_may_be_skipped(tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", {"a.png": picture(1), "a.cls": b"0", "b.png": b"no", "b.cls": b"1"})
    shard(tmp_path / "val-0.tar", 0, 2)
    for on_broken in ("error", "skip"):
        own = spec(tmp_path, stream={}, on_broken=on_broken)
        reader = ImageReader(*load_images(own), own, seed=0)
        request = ReadRequest("train", 0, np.array([1]))
        if on_broken == "error":
            with pytest.raises(SampleError, match=r"train-0.tar: row 2: is not a readable image"):
                reader.read(request)
        else:
            assert reader.read(request).images.unique().tolist() == [1]
