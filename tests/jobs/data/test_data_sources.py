"""Where the images come from, in which order of preference, and the error when they are missing."""

import gzip
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jobs.data import DataError, ImageData, load_images, sources
from jobs.spec.job_spec import DataSpec
from jobs.torchvision_compat import import_torchvision
from tests.jobs.data.data_fixture import idx

NO_FOLDER = Path("/nonexistent")


def fashion(folder: Path, fill: int, *, compress: bool = True) -> Path:
    """A tiny data set in Fashion-MNIST's form: 20 training and 10 test images of one grey level."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        write(folder / f"{prefix}-images-idx3-ubyte", torch.full((count, 28, 28), fill), compress)
        write(folder / f"{prefix}-labels-idx1-ubyte", torch.arange(count) % 10, compress)
    return folder


def write(path: Path, values: Tensor, compress: bool) -> None:
    content = idx(values.to(torch.uint8))
    if compress:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces the folder of the system's package, not installed yet."""
    folder = tmp_path / "system"
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", folder)
    return folder


@pytest.mark.parametrize("below", ["", "FashionMNIST/raw", "raw"])
@pytest.mark.parametrize("compress", [True, False])
def test_a_given_root_is_read_in_any_layout_and_before_the_system(
    tmp_path: Path, system: Path, below: str, compress: bool
):
    fashion(system, fill=1)
    fashion(tmp_path / "mine" / below, fill=2, compress=compress)
    train, test = load_images(DataSpec(dataset="fashion-mnist", root=str(tmp_path / "mine")))
    assert train.images.shape == (20, 1, 28, 28)
    assert test.images.shape == (10, 1, 28, 28)
    assert train.images.unique().tolist() == [2]
    assert train.labels.tolist() == [*range(10), *range(10)]
    assert (train.classes[0], train.classes[9]) == ("T-shirt/top", "Ankle boot")


def test_a_root_without_the_data_set_is_an_error_whatever_the_system_has(tmp_path: Path, system: Path):
    fashion(system, fill=1)
    with pytest.raises(DataError) as caught:
        load_images(DataSpec(root=str(tmp_path / "empty")))
    for part in (str(tmp_path / "empty"), "data.root", "data.download: true"):
        assert part in str(caught.value)
    assert str(system) not in str(caught.value)


def test_auto_falls_back_to_digits_and_names_the_reason(system: Path, caplog: pytest.LogCaptureFixture):
    train, _ = load_images(DataSpec())
    assert train.name == "digits"
    assert f"fashion-mnist is not in {system}" in caplog.text


def test_auto_reports_what_it_found(system: Path, caplog: pytest.LogCaptureFixture):
    fashion(system, fill=1)
    caplog.set_level(logging.INFO)
    load_images(DataSpec())
    assert f"fashion-mnist from {system}" in caplog.text


def test_asking_for_what_is_not_there_names_the_folder_and_the_ways_out(system: Path):
    with pytest.raises(DataError) as caught:
        load_images(DataSpec(dataset="fashion-mnist"))
    for part in (str(system), "dataset-fashion-mnist", "data.root", "data.download: true"):
        assert part in str(caught.value)


def test_an_incomplete_data_set_is_named_rather_than_replaced(system: Path):
    (fashion(system, fill=1) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="incomplete: neither t10k-labels-idx1-ubyte nor"):
        load_images(DataSpec())


def test_labels_that_do_not_fit_the_images_are_refused(system: Path):
    fashion(system, fill=1)
    write(system / "train-labels-idx1-ubyte", torch.zeros(19), compress=True)
    with pytest.raises(DataError, match="20 images but 19 labels"):
        load_images(DataSpec())
    write(system / "train-labels-idx1-ubyte", torch.full((20,), 10), compress=True)
    with pytest.raises(DataError, match=r"a label is outside 0\.\.9"):
        load_images(DataSpec())


def test_a_failed_download_is_one_line(tmp_path: Path, system: Path, monkeypatch: pytest.MonkeyPatch):
    import_torchvision()
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", [NO_FOLDER.as_uri() + "/"])
    with pytest.raises(DataError, match=r"the download into .* failed") as caught:
        load_images(DataSpec(root=str(tmp_path / "new"), download=True))
    assert "\n" not in str(caught.value)


def test_digits_are_split_the_same_every_time_with_equal_shares_of_every_class():
    config = DataSpec(dataset="digits")
    train, test = load_images(config)
    again, _ = load_images(config)
    assert (len(train), len(test)) == (1437, 360)
    assert torch.equal(train.images, again.images)
    assert (train.channels, train.images.shape[2], len(train.classes)) == (1, 8, 10)
    assert train.images.max() == 255
    shares = test.labels.bincount() / (test.labels.bincount() + train.labels.bincount())
    assert ((shares - 0.2).abs() < 0.01).all()
    together = torch.cat([train.images, test.images]).flatten(1)
    assert len(together.unique(dim=0)) == 1797  # no image is in both


def test_a_limit_takes_a_fixed_choice_that_grows():
    ten, _ = load_images(DataSpec(dataset="digits", train_limit=10))
    hundred, test = load_images(DataSpec(dataset="digits", train_limit=100, test_limit=7))
    assert (len(ten), len(hundred), len(test)) == (10, 100, 7)
    assert torch.equal(ten.images, hundred.images[:10])
    assert len(hundred.labels.unique()) == 10
    everything, _ = load_images(DataSpec(dataset="digits", train_limit=10**6))
    assert len(everything) == 1437


@pytest.mark.skipif(not sources.SYSTEM_FOLDER.is_dir(), reason="needs the package dataset-fashion-mnist")
def test_the_real_fashion_mnist_is_what_it_is_known_to_be():
    train, test = load_images(DataSpec(dataset="fashion-mnist"))
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [6000] * 10
    (mean,), (deviation,) = train.mean_and_std()
    assert (round(mean, 4), round(deviation, 4)) == (0.2860, 0.3530)  # as published


def test_images_of_the_wrong_shape_or_none_are_refused():
    with pytest.raises(DataError, match=r"images must be uint8 of shape \[N, C, H, W\]"):
        ImageData(torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), ("a",), "mine")
    with pytest.raises(DataError, match="mine: holds no images"):
        ImageData(torch.zeros(0, 1, 4, 4).byte(), torch.zeros(0).long(), ("a",), "mine")
