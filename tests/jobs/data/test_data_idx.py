"""IDX files: read exactly, or refused by name."""

import gzip
from pathlib import Path

import pytest
import torch

from jobs.data.errors import DataError
from jobs.data.idx import read_idx
from tests.jobs.data.data_fixture import idx

VALUES = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_values_and_shape_come_back(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(gzip.compress(idx(VALUES)) if name.endswith(".gz") else idx(VALUES))
    read = read_idx(path, dimensions=3)
    assert read.dtype == torch.uint8
    assert torch.equal(read, VALUES)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a", b"", "not an IDX file"),
        ("a", b"\0\0\x08", "not an IDX file"),
        ("a", b"\x89PNG" + bytes(30), "not an IDX file"),
        ("a", b"\0\0\x0d\x03" + bytes(30), "not an IDX file of unsigned bytes"),
        ("a", idx(VALUES[0]) + bytes(8), "has 2 dimensions, 3 expected"),
        ("a", idx(VALUES)[:-1], "23 bytes of data, 24 expected for the shape 2x3x4"),
        ("a", idx(VALUES) + b"x", "25 bytes of data, 24 expected"),
        ("a.gz", gzip.compress(idx(VALUES), mtime=0)[:-12], "truncated or damaged gzip file"),
        (
            "a.gz",
            gzip.compress(idx(VALUES), mtime=0)[:12] + b"xxxxxxxxxxxxxxxxxxxxxxxxx",
            "damaged gzip file",
        ),
        ("a.gz", idx(VALUES), "damaged gzip file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, said: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, dimensions=3)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none: cannot be read: No such file"):
        read_idx(tmp_path / "none", dimensions=1)
