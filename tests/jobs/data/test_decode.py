"""Image files of any kind become 8-bit colour that shows what is in them, or are refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from jobs.data import SampleError
from jobs.data.decode import decode

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_16_bit_grey_keeps_its_levels(tmp_path: Path, name: str):
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(tmp_path / name)
    found = decode(tmp_path / name)
    assert found.shape == (3, 64, 64)
    assert found[0].double().sub(torch.from_numpy(RAMP * 255)).abs().max() <= 1


def test_12_bit_grey_of_a_tiff_keeps_its_levels(tmp_path: Path):
    """Two pixels in three bytes."""
    pixels = (RAMP * 4095).astype(np.uint32).reshape(-1, 2)
    pairs = (pixels[:, 0] << 12 | pixels[:, 1]).astype(">u4")
    strip = pairs.view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    tags = {256: 64, 257: 64, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 64, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    (tmp_path / "grey.tif").write_bytes(head + strip)
    found = decode(tmp_path / "grey.tif")
    assert found[0].double().sub(torch.from_numpy(RAMP * 255)).abs().max() <= 1


def test_float_pixels_are_scaled_from_zero_to_one(tmp_path: Path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "ramp.tif")
    assert decode(tmp_path / "ramp.tif")[0].double().sub(torch.from_numpy(RAMP * 255)).abs().max() <= 1


@pytest.mark.parametrize("scale", [255.0, -1.0])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, scale: float):
    Image.fromarray((RAMP * scale).astype(np.float32)).save(tmp_path / "ramp.tif")
    with pytest.raises(SampleError, match=r"ramp.tif: .*no known range: convert it to 8 or 16 bits"):
        decode(tmp_path / "ramp.tif")
    Image.fromarray((RAMP * 2**30).astype(np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(SampleError, match=r"wide.tif: .*no known range"):
        decode(tmp_path / "wide.tif")


@pytest.mark.parametrize("shade", [0, 255])
def test_a_picture_that_only_the_alpha_channel_holds_is_seen(tmp_path: Path, shade: int):
    pixels = np.full((64, 64, 4), shade, np.uint8)
    pixels[..., 3] = RAMP * 255
    Image.fromarray(pixels).save(tmp_path / "icon.png")
    assert len(decode(tmp_path / "icon.png")[0].unique()) > 100


def test_colours_are_kept_where_the_alpha_channel_is_not_needed(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "icon.png")
    assert torch.equal(decode(tmp_path / "icon.png"), torch.from_numpy(pixels[..., :3]).permute(2, 0, 1))


def test_of_a_thin_strip_the_middle_is_kept(tmp_path: Path):
    Image.new("RGB", (1, 4000), "red").save(tmp_path / "line.png")
    Image.new("RGB", (160, 10), "red").save(tmp_path / "strip.png")
    assert decode(tmp_path / "line.png").shape == (3, 16, 1)
    assert decode(tmp_path / "strip.png").shape == (3, 10, 160)


def test_whatever_a_decoder_raises_names_the_file(tmp_path: Path):
    whole = tmp_path / "whole.png"
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(whole)
    content = bytearray(whole.read_bytes())
    generator = np.random.default_rng(0)
    for number in range(60):
        damaged = content[: generator.integers(1, len(content))] if number % 2 else bytearray(content)
        damaged[generator.integers(len(damaged))] ^= 1 << generator.integers(8)
        path = tmp_path / f"{number}.png"
        path.write_bytes(damaged)
        said = refusal_of(path)
        assert said is None or (str(path) in said and "\n" not in said)


def refusal_of(path: Path) -> str | None:
    try:
        decode(path)
    except SampleError as error:
        return str(error)
    return None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_photograph_is_seen_as_its_camera_was_held(tmp_path: Path, orientation: int, suffix: str):
    pixels = np.full((16, 32, 3), 40, np.uint8)
    pixels[:8, :16] = 220
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert decode(path).permute(1, 2, 0).numpy().tolist() == expected.tolist()
    assert expected.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
