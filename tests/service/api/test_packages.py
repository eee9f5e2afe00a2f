"""Packages as an attacker packs them."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from service.api import Limits
from tests.service.api.api_fixture import Api, problem


def zipped(*names: str | zipfile.ZipInfo, method: int = zipfile.ZIP_STORED, content: bytes = b"0") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


def linked(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../escape.py"))
    return buffer.getvalue()


def with_huge_dictionary() -> bytes:
    """LZMA that asks for 4 GiB before it gives a byte."""
    content = zipped("x", method=zipfile.ZIP_LZMA)
    at = content.index(struct.pack("<H", 5) + b"\x5d") + 3
    return content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :]


def said_to_be_encrypted() -> bytes:
    content = bytearray(zipped("x"))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def with_more_entries_than_it_says() -> bytes:
    content = bytearray(zipped(*(str(i) for i in range(50))))
    content[-14:-10] = struct.pack("<HH", 1, 1)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tarred(), "not a readable zip file"),
        (with_huge_dictionary(), "not packed with deflate"),
        (zipped("x", method=zipfile.ZIP_BZIP2), "not packed with deflate"),
        (said_to_be_encrypted(), "encrypted"),
        (with_more_entries_than_it_says(), "more than 20 files"),
        (zipped("a/b", "a/./b"), "twice"),
        (zipped("a/../../b"), "must stay inside"),
        (zipped("C:/x"), "must stay inside"),
        (zipped("good\x01name"), "printable"),
        (zipped("n" * 2000), "printable"),
        (zipped("a/" + "n" * 300), "at most 255 bytes"),
        (zipped("a", "a/b"), "as a file and as a folder"),
        (zipped("a/b/c", "a/b"), "as a file and as a folder"),
        (zipped(linked("a/")), "not a plain file"),
        (zipped("x").replace(b"x", b"\0"), "printable"),
        (b"PK\x05\x06" + b"\xff" * 18, "not a readable zip file"),
        (b"", "not a readable zip file"),
    ],
    ids=[
        "tar",
        "lzma with a huge dictionary",
        "bzip2",
        "encrypted",
        "more entries than it says",
        "one file twice",
        "path escape",
        "drive letter",
        "control character",
        "long name",
        "long part of a path",
        "a file that is a folder too",
        "a folder that is a file too",
        "a link that is called a folder",
        "zero byte",
        "an end alone",
        "nothing",
    ],
)
def test_no_package_is_taken_that_is_made_to_hurt(tmp_path: Path, content: bytes, says: str) -> None:
    answer = (
        Api(tmp_path, limits=Limits(unpacked_files=20)).client("submit").post("/v1/packages", content=content)
    )
    assert answer.status_code in (413, 422)
    assert says in problem(answer)
