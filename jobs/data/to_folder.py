"""``python -m jobs.data.to_folder DATASET FOLDER``: a data set as image files, in ``train/`` and ``val/``.

To try a spec for a folder of images without one: ``python -m jobs.data.to_folder digits images``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs.data.errors import DataError
from jobs.data.images import Images
from jobs.data.sources import load_images
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.torchvision_compat import import_torchvision

import_torchvision()
from torchvision.transforms.v2 import functional  # noqa: E402


def write_folder(images: Images, folder: Path) -> int:
    """Writes ``folder/<class>/<number>.png`` for every image; returns how many.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        for row, label in enumerate(images.labels.tolist()):
            place = folder / images.classes[label].replace("/", "-")
            place.mkdir(parents=True, exist_ok=True)
            functional.to_pil_image(images.pixels(row)).save(place / f"{row:06d}.png")
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
    return len(images)


def main(arguments: list[str]) -> int:
    """Parses the arguments, writes the folder, returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.data.to_folder", description=__doc__)
    parser.add_argument("dataset", help="such as digits; as in data.dataset of a spec")
    parser.add_argument("folder", type=Path, help="new folder to write")
    parser.add_argument("--root", help="where the data set is stored, as in data.root")
    parser.add_argument("--limit", type=int, help="write this many images of each split only")
    options = parser.parse_args(arguments)
    limit = options.limit
    data = {"dataset": options.dataset, "root": options.root, "train_limit": limit, "test_limit": limit}
    try:
        if options.folder.exists():
            raise DataError(f"{options.folder}: is there already: name a new folder")
        train, val = load_images(JobSpec.from_dict({"data": data}).data)
        written = write_folder(train, options.folder / "train") + write_folder(val, options.folder / "val")
    except (SpecError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{written} images of {train.name} in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
