"""Data sets that torchvision knows: read from their published files, or refused in one line."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from jobs.data import DataError, load_images
from jobs.spec.job_spec import DataSpec, JobSpec, SpecError
from jobs.torchvision_compat import import_torchvision
from tests.jobs.data.data_fixture import idx

import_torchvision()
from torchvision import datasets

GENERATOR = np.random.default_rng(0)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("kmnist", "KMNIST")])
def test_characters_come_from_their_idx_files(tmp_path: Path, name: str, folder: str):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        pixels = torch.full((count, 28, 28), count, dtype=torch.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx((torch.arange(count) % 10).byte()))
    train, test = load_images(DataSpec(dataset=name, root=str(tmp_path), train_limit=12))  # type: ignore[arg-type]
    assert (len(train), len(test), len(train.classes), train.name) == (12, 10, 10, name)
    assert train.pixels(0).shape == (1, 28, 28)
    assert test.pixels(9).unique().tolist() == [10]


def test_cifar_comes_from_its_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    listed = {}
    for file in ("data_batch_1", "test_batch"):
        rows = GENERATOR.integers(0, 256, (6, 3072), dtype=np.uint8)
        listed[file] = rows
        (base / file).write_bytes(pickle.dumps({"data": rows, "labels": [0, 1, 2, 3, 4, 9]}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    for attribute, file in (("train_list", "data_batch_1"), ("test_list", "test_batch")):
        monkeypatch.setattr(datasets.CIFAR10, attribute, [[file, md5(base / file)]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(base / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    train, test = load_images(DataSpec(dataset="cifar10", root=str(tmp_path)))
    assert train.classes == tuple("abcdefghij")
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 9]
    assert torch.equal(test.pixels(2), torch.from_numpy(listed["test_batch"][2].reshape(3, 32, 32)))


def test_svhn_comes_from_its_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pixels = GENERATOR.integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    split_list = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": pixels, "y": np.array([[1], [2], [9], [10], [3]])})
        split_list[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    train, _ = load_images(DataSpec(dataset="svhn", root=str(tmp_path)))
    assert train.labels.tolist() == [1, 2, 9, 0, 3]
    assert train.classes == tuple("0123456789")
    assert torch.equal(train.pixels(3), torch.from_numpy(pixels[..., 3]).permute(2, 0, 1))


@pytest.mark.parametrize("name", ["mnist", "kmnist", "cifar10", "cifar100", "svhn", "stl10", "usps"])
def test_what_is_not_there_is_one_line_with_the_ways_out(tmp_path: Path, name: str):
    with pytest.raises(DataError) as caught:
        load_images(DataSpec(dataset=name, root=str(tmp_path)))  # type: ignore[arg-type]
    for part in (name, str(tmp_path), "data.root", "data.download: true"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [Path("/nonexistent").as_uri() + "/"])
    with pytest.raises(DataError, match=r"mnist: the download into .* failed") as caught:
        load_images(DataSpec(dataset="mnist", root=str(tmp_path), download=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "path", "said"),
    [
        ({"dataset": "cifar10"}, "data.root", "is required for cifar10"),
        ({"dataset": "cifar-10"}, "data.dataset", 'did you mean "cifar10"?'),
        ({"dataset": "digits", "val_share": 0.2}, "data.val_share", "is for imagefolder"),
        ({"on_broken": "skip"}, "data.on_broken", "is for imagefolder"),
        ({"dataset": "digits", "download": True}, "data.download", "nothing to download for digits"),
        ({"resize": 40}, "data.resize", "set data.image_size too"),
        ({"image_size": 40, "resize": 32}, "data.resize", "at least data.image_size = 40"),
        ({"augment": "strong"}, "data.augment", "must be one of none, standard"),
        ({"augment": {"mixap": 1}}, "data.augment.mixap", 'did you mean "mixup"?'),
        ({"augment": {"mix_probability": 0.5}}, "data.augment.mix_probability", "set one of them"),
        ({"augment": {"crop": "none", "crop_padding": 2}}, "data.augment.crop_padding", "is for crop: pad"),
        ({"augment": {"crop_scale": [0.5, 0.1]}}, "data.augment.crop_scale", "smallest and the largest"),
        ({"augment": {"color": {"hue": 2}}}, "data.augment.color.hue", "less than or equal to 0.5"),
        ({"normalize": {"std": [0.0]}}, "data.normalize.std[0]", "greater than 0"),
    ],
)
def test_a_contradiction_in_the_data_section_is_named_with_its_field(data: dict, path: str, said: str):
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict({"data": data})
    assert caught.value.problems[0].path == path
    assert said in str(caught.value)
