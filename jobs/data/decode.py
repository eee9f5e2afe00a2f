"""One image file as 8-bit red, green and blue, whatever the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from jobs.data.errors import SampleError
from jobs.torchvision_compat import import_torchvision

import_torchvision()
from torchvision.transforms.v2 import functional  # noqa: E402

_BITS_PER_SAMPLE = 258
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation."""
_LONGEST = 16
"""Of a strip with sides of more than 1:16 the middle is kept: resizing its short side would make it huge."""


def decode(source: Path | BinaryIO, name: str | None = None) -> Tensor:
    """The image, uint8 [3, H, W].

    It is turned by its EXIF orientation, as cameras set it. 16-bit grey is scaled to 8 bits, float pixels
    from 0..1. Transparency is dropped; but where the alpha channel alone holds the picture, it is laid on a
    background that shows it.

    Args:
        source: a file, or its content.
        name: for messages; the path if None.

    Raises:
        SampleError: the file is broken, gone, or has pixels without a known range; it is named.
    """
    try:
        with Image.open(source) as image:
            rgb = _rgb(image)
            return functional.pil_to_tensor(_middle(_upright(rgb, image)))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything, and one broken file must not end a training
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            reason = "there is no such file"
        raise SampleError(f"{name or source}: is not a readable image: {reason}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _from_wide(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _without_alpha(image.convert("RGBA"))
    return image.convert("RGB")


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """Asked after the image was loaded: Pillow itself turns a TIFF then."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - a broken header of a picture that can be read
        turn = None
    return rgb if turn is None else rgb.transpose(turn)


def _from_wide(image: Image.Image) -> Image.Image:
    """Pixels of more than 8 bits: Pillow's own conversion would clip them at 255."""
    pixels = np.asarray(image).astype(np.float64)
    largest = _largest(image, pixels)
    grey = (pixels * (255 / largest)).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _largest(image: Image.Image, pixels: NDArray[np.float64]) -> float:
    """The value of white."""
    low, high = float(pixels.min()), float(pixels.max())
    if image.mode == "F" and low >= 0.0 and high <= 1.0:
        return 1.0
    if image.mode != "F" and low >= 0.0 and high <= 65535.0 and _is_16_bit(image):
        return float(2 ** _stored_bits(image) - 1)
    raise ValueError(
        f"its pixels (mode {image.mode}, {low:g} to {high:g}) have no known range: convert it to 8 or 16 bits"
    )


def _is_16_bit(image: Image.Image) -> bool:
    """Pillow opens some 16-bit PNG and PGM files as 32-bit ones."""
    return image.mode.startswith("I;16") or image.format in ("PNG", "PPM")


def _stored_bits(image: Image.Image) -> int:
    """TIFF has pixels of 10, 12 and 14 bits too."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
    return int(bits) if 8 < bits < 16 else 16


def _without_alpha(image: Image.Image) -> Image.Image:
    rgb, alpha = image.convert("RGB"), image.getchannel("A")
    pixels = np.asarray(rgb)
    if len(np.unique(np.asarray(alpha))) == 1 or (pixels != pixels[0, 0]).any():
        return rgb
    background = Image.new("RGB", image.size, "black" if pixels.mean() > 127 else "white")
    background.paste(rgb, mask=alpha)
    return background


def _middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = _LONGEST * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))
