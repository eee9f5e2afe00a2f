"""Size, augmentation and normalisation: reproducible sample by sample, and no side effects."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.data import DataError, ImageData
from jobs.data.reader import ImageReader, ReadRequest
from jobs.spec.job_spec import DataSpec, JobSpec

COLOURED = ImageData(
    torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(64) % 4,
    ("a", "b", "c", "d"),
    "coloured",
)
IDS = np.arange(64)
EVERYTHING: dict[str, Any] = {
    "flip": "both",
    "rotation": 20,
    "color": {},
    "randaugment": {},
    "augmix": {},
    "erasing": {"probability": 0.5},
}


def reader(
    augment: Any = "standard", *, seed: int = 0, images: ImageData = COLOURED, **data: Any
) -> ImageReader:
    spec = JobSpec.from_dict({"data": {"augment": augment, "batch_size": 16, **data}})
    return ImageReader(images, images, spec.data, seed=seed)


def transformed(ids: np.ndarray, augment: Any = "standard", *, epoch: int = 0, **options: Any) -> Tensor:
    source = reader(augment, **options)
    return source.pipeline.normalize(source.read(ReadRequest("train", epoch, ids)).images)


def test_the_training_set_is_normalised_per_channel():
    images = transformed(IDS, "none")
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
    assert torch.isfinite(transformed(np.arange(4), "none", images=blank)).all()


@pytest.mark.parametrize(
    ("normalize", "mean", "std"),
    [
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("none", [0.0], [1.0]),
        ({"mean": [0.5], "std": [0.25]}, [0.5], [0.25]),
    ],
)
def test_the_normalisation_can_be_given(normalize: Any, mean: list[float], std: list[float]):
    pixels = COLOURED.images.float() / 255
    expected = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(transformed(IDS, "none", normalize=normalize), expected)


def test_numbers_that_do_not_fit_the_channels_are_refused():
    with pytest.raises(DataError, match=r"has 2 numbers, and the images of coloured have 3 channels"):
        reader(normalize={"mean": [0.5, 0.5], "std": [1.0, 1.0]})


def test_images_are_brought_to_the_size_that_is_asked_for():
    wide = ImageData(torch.zeros(4, 1, 8, 12).byte(), torch.zeros(4).long(), ("a",), "wide")
    for augment in ("none", "standard", {"crop": "resized"}):
        assert transformed(np.arange(4), augment, images=wide, image_size=10).shape == (4, 1, 10, 10)
    with pytest.raises(DataError, match=r"8x12 pixels: set data\.image_size"):
        reader(images=wide)


@pytest.mark.parametrize("augment", ["standard", EVERYTHING], ids=["standard", "everything"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_augmentation_is_the_same_for_any_world_size(world_size: int, augment: Any):
    shares = [transformed(share, augment) for share in np.split(IDS, world_size)]
    assert torch.equal(torch.cat(shares), transformed(IDS, augment))


@pytest.mark.parametrize("augment", ["standard", EVERYTHING], ids=["standard", "everything"])
def test_augmentation_of_a_sample_does_not_depend_on_its_place(augment: Any):
    order = np.random.default_rng(0).permutation(64)
    assert torch.equal(transformed(order, augment), transformed(IDS, augment)[torch.from_numpy(order)])


def test_augmentation_changes_with_sample_epoch_and_seed():
    base = transformed(IDS)
    for other in (transformed(IDS, epoch=1), transformed(IDS, seed=1), transformed(IDS, "none")):
        same = (base == other).flatten(1).all(1)
        assert same.float().mean() < 0.2  # one crop in 50 or so falls on the same place
    twins = ImageData(COLOURED.images[:1].expand(64, -1, -1, -1), COLOURED.labels, COLOURED.classes, "twins")
    assert len(transformed(IDS, images=twins).flatten(1).unique(dim=0)) > 10


@pytest.mark.parametrize("augment", ["standard", {**EVERYTHING, "mixup": 0.2, "cutmix": 1.0}])
def test_the_global_random_numbers_are_untouched(augment: Any):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    transformed(IDS, augment)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "augment",
    [
        {"crop": "resized"},
        {"crop": "pad", "crop_padding": 1},
        {"flip": "vertical"},
        {"rotation": 30},
        {"color": {"brightness": 0.9}},
        {"randaugment": {"operations": 3, "magnitude": 20}},
        {"augmix": {"width": 2, "depth": 2}},
        {"erasing": {"probability": 1.0}},
    ],
    ids=lambda section: next(iter(section)),
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_alone_changes_images_of_any_channels(augment: dict[str, Any], channels: int):
    images = ImageData(COLOURED.images[:, :channels], COLOURED.labels, COLOURED.classes, "some")
    plain = {"crop": "none", "flip": "none"}
    assert torch.equal(transformed(IDS, plain, images=images), transformed(IDS, "none", images=images))
    changed = transformed(IDS, plain | augment, images=images)
    same = (changed == transformed(IDS, "none", images=images)).flatten(1).all(1)
    assert same.float().mean() < 0.6


def test_what_is_erased_is_the_mean_after_normalisation():
    section = {"crop": "none", "flip": "none", "erasing": {"probability": 1.0, "scale": [0.3, 0.3]}}
    erased = transformed(IDS, section)
    gone = erased != transformed(IDS, "none")
    assert gone.float().mean() == pytest.approx(0.3, abs=0.05)
    assert erased[gone].abs().max() < 0.01


def mirrored_share(name: str) -> float:
    """How often an image whose left half is white comes out with its right half whiter."""
    images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    images[..., :4] = 255
    out = transformed(IDS, images=ImageData(images, torch.zeros(64).long(), ("a",), name))
    return (out[..., 5:].mean((1, 2, 3)) > out[..., :3].mean((1, 2, 3))).float().mean().item()


@pytest.mark.parametrize("name", ["digits", "mnist", "svhn"])
def test_characters_are_never_mirrored(name: str):
    assert mirrored_share(name) == 0.0
    assert 0.3 < mirrored_share("clothes") < 0.7


def test_the_short_forms_mean_what_their_long_forms_do():
    assert DataSpec(augment="none").augmentation is None
    assert (
        DataSpec(augment="standard").augmentation == JobSpec.from_dict({"data": {"augment": {}}}).data.augment
    )
