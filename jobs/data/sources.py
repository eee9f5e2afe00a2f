"""Where images come from: a folder of the user's, torchvision, the system's Fashion-MNIST, scikit-learn."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from jobs.data.errors import DataError
from jobs.data.idx import read_idx
from jobs.data.images import ImageData, Images, first

if TYPE_CHECKING:
    from jobs.spec.data import DataSpec

_log = logging.getLogger(__name__)

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package ``dataset-fashion-mnist`` puts its files."""

_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_SPLIT_SEED = 0


def load_images(config: DataSpec) -> tuple[Images, Images]:
    """The training and the test split that a spec asks for, with its limits applied.

    Raises:
        DataError: the data set is not there, or a file of it is damaged.
    """
    train, test = _find(config)
    return first(train, config.train_limit), first(test, config.test_limit)


def _find(config: DataSpec) -> tuple[Images, Images]:
    if config.stream is not None:
        from jobs.data.streams.formats import Columns
        from jobs.data.streams.rows import load_stream

        return load_stream(config, Columns(config.columns.label, (config.columns.image,)))
    if config.dataset == "digits":
        return load_digits()
    if config.dataset == "imagefolder":
        from jobs.data.imagefolder import load_image_folder  # imports torchvision, which takes a second

        return load_image_folder(config)
    if config.dataset == "table":
        from jobs.data.labelled import load_table  # imports pyarrow

        return load_table(config)
    if config.dataset == "webdataset":
        from jobs.data.webdataset import load_tars

        return load_tars(config)
    if config.dataset not in ("auto", "fashion-mnist"):
        from jobs.data.named import load_named

        return load_named(config)
    return _fashion_or_digits(config)


def _fashion_or_digits(config: DataSpec) -> tuple[ImageData, ImageData]:
    folder = _fashion_folder(config)
    if folder is not None:
        _log.info("data: fashion-mnist from %s", folder)
        return load_fashion_mnist(folder)
    if config.dataset == "fashion-mnist" or config.root is not None:
        raise DataError(_advice(config))
    _log.warning("data: digits (8x8) instead of fashion-mnist: %s", _advice(config))
    return load_digits()


def _fashion_folder(config: DataSpec) -> Path | None:
    """The first folder that holds Fashion-MNIST; downloads it only where the spec allows that."""
    for folder in _candidates(config):
        if _file(folder, "train-images-idx3-ubyte") is not None:
            return folder
    return _download(Path(config.root or "data").expanduser()) if config.download else None


def _candidates(config: DataSpec) -> tuple[Path, ...]:
    if config.root is None:
        return (SYSTEM_FOLDER,)
    root = Path(config.root).expanduser()
    return root, root / "FashionMNIST" / "raw", root / "raw"


def _advice(config: DataSpec) -> str:
    searched = ", ".join(str(folder) for folder in _candidates(config))
    if config.root is not None:
        return (
            f"fashion-mnist is in none of {searched}: set data.root to its folder, "
            "leave data.root out to use the system's, or set data.download: true"
        )
    return (
        f"fashion-mnist is not in {searched}: install the Debian package dataset-fashion-mnist, "
        "set data.root to its folder, or set data.download: true"
    )


def _download(root: Path) -> Path:
    from jobs.torchvision_compat import import_torchvision

    import_torchvision()
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"fashion-mnist: the download into {root} failed: {reason}") from error
    return root / "FashionMNIST" / "raw"


def load_fashion_mnist(folder: Path) -> tuple[ImageData, ImageData]:
    """Training and test split from a folder with the four IDX files, gzipped or not."""
    return _fashion_split(folder, "train"), _fashion_split(folder, "t10k")


def _fashion_split(folder: Path, prefix: str) -> ImageData:
    images = read_idx(_required(folder, f"{prefix}-images-idx3-ubyte"), dimensions=3)
    labels = read_idx(_required(folder, f"{prefix}-labels-idx1-ubyte"), dimensions=1)
    return ImageData(images.unsqueeze(1), labels.long(), _CLASSES, "fashion-mnist")


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _required(folder: Path, name: str) -> Path:
    path = _file(folder, name)
    if path is None:
        raise DataError(f"{folder}: fashion-mnist is incomplete: neither {name} nor {name}.gz is there")
    return path


def load_digits() -> tuple[ImageData, ImageData]:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, split 80/20 with equal shares of each class."""
    from sklearn.datasets import load_digits as read_digits
    from sklearn.model_selection import train_test_split

    images, labels = read_digits(return_X_y=True)
    pixels = torch.from_numpy((images.reshape(-1, 1, 8, 8) * (255 / 16)).round().astype("uint8"))
    whole = ImageData(pixels, torch.from_numpy(labels).long(), tuple("0123456789"), "digits")
    rows = train_test_split(range(len(labels)), test_size=0.2, random_state=_SPLIT_SEED, stratify=labels)
    train, test = (whole.chosen(torch.tensor(chosen)) for chosen in rows)
    return train, test
