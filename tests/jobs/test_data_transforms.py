"""Augmentation and normalisation: reproducible sample by sample, and no side effects."""

import numpy as np
import pytest
import torch

from jobs.data import ImageData
from jobs.data.transforms import ImageTransform

COLOURED = ImageData(
    torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(64) % 4,
    ("a", "b", "c", "d"),
    "coloured",
)
IDS = np.arange(64)


def transformed(ids: np.ndarray, *, augment: str = "standard", seed: int = 0, epoch: int = 0) -> torch.Tensor:
    transform = ImageTransform(COLOURED, augment=augment, seed=seed)  # type: ignore[arg-type]
    return transform.train(COLOURED.images[torch.from_numpy(ids)], ids, epoch, "cpu")


def test_the_training_set_is_normalised_per_channel():
    images = transformed(IDS, augment="none")
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_mean_and_deviation_are_those_of_the_pixels():
    pixels = COLOURED.images.double() / 255
    mean, deviation = COLOURED.mean_and_std()
    torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    expected = pixels.var((0, 2, 3), correction=0).sqrt()
    torch.testing.assert_close(torch.tensor(deviation).double(), expected, rtol=1e-6, atol=0)


def test_a_blank_data_set_stays_finite():
    blank = ImageData(torch.zeros(4, 1, 8, 8).byte(), torch.zeros(4).long(), ("a",), "blank")
    transform = ImageTransform(blank, augment="none", seed=0)
    assert torch.isfinite(transform.test(blank.images, "cpu")).all()


@pytest.mark.parametrize("world_size", [2, 4])
def test_augmentation_is_the_same_for_any_world_size(world_size: int):
    shares = [transformed(share) for share in np.split(IDS, world_size)]
    assert torch.equal(torch.cat(shares), transformed(IDS))


def test_augmentation_of_a_sample_does_not_depend_on_its_place():
    order = np.random.default_rng(0).permutation(64)
    assert torch.equal(transformed(order), transformed(IDS)[torch.from_numpy(order)])


def test_augmentation_changes_with_sample_epoch_and_seed():
    base = transformed(IDS)
    for other in (transformed(IDS, epoch=1), transformed(IDS, seed=1), transformed(IDS, augment="none")):
        same = (base == other).flatten(1).all(1)
        assert same.float().mean() < 0.2  # one crop in 50 or so falls on the same place
    twins = ImageData(COLOURED.images[:1].expand(64, -1, -1, -1), COLOURED.labels, COLOURED.classes, "twins")
    images = ImageTransform(twins, augment="standard", seed=0).train(twins.images, IDS, 0, "cpu")
    assert len(images.flatten(1).unique(dim=0)) > 10


def test_the_global_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    transformed(IDS)
    assert torch.equal(torch.rand(3), expected)


def mirrored_share(name: str) -> float:
    """How often an image whose left half is white comes out with its right half whiter."""
    images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    images[..., :4] = 255
    data = ImageData(images, torch.zeros(64).long(), ("a",), name)
    out = ImageTransform(data, augment="standard", seed=0).train(images, IDS, 0, "cpu")
    return (out[..., 5:].mean((1, 2, 3)) > out[..., :3].mean((1, 2, 3))).float().mean().item()


def test_digits_are_never_mirrored():
    assert mirrored_share("digits") == 0.0
    assert 0.3 < mirrored_share("clothes") < 0.7
