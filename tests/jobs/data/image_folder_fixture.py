"""Small folders of real image files, one colour for each class, for the tests of image folders."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 40, 200), "green": (30, 200, 40), "red": (200, 30, 40)}


def write_images(folder: Path, per_class: int, *, size: tuple[int, int] = (40, 32), seed: int = 0) -> Path:
    """``folder/<colour>/000.png ...``: noise around the colour; sizes differ a little."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            shape = (size[1] + number % 3, size[0] - number % 2, 3)
            pixels = np.clip(np.array(colour) + generator.normal(0, 40, shape), 0, 255)
            suffix = ".jpg" if number % 4 == 3 else ".png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:03d}{suffix}")
    return folder


def break_image(path: Path) -> Path:
    """Cuts the second half off."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def grey_image(path: Path) -> None:
    """A grey image with an alpha channel, as some cameras and all screenshots of terminals."""
    buffer = io.BytesIO()
    Image.new("LA", (33, 35), (90, 128)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
