"""Only plain files are opened, and below a folder only those inside it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from jobs.run_dir.plain_file import NotAPlainFile, open_plain, read_plain


def test_a_fifo_a_socket_and_a_device_are_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    for path in (Path("fifo"), Path("socket"), Path("/dev/zero")):
        with pytest.raises(NotAPlainFile, match="is no regular file"):
            open_plain(path)


def test_a_link_is_followed_only_inside_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "job"
    inside.mkdir()
    (tmp_path / "outside").write_text("outside")
    (inside / "file").write_text("inside")
    (inside / "near").symlink_to("file")
    (inside / "far").symlink_to(tmp_path / "outside")
    (inside / "up").symlink_to(tmp_path)
    assert read_plain(inside / "near", inside) == b"inside"
    assert read_plain(inside / "far") == b"outside", "with the rights of the caller any link may be followed"
    for path in (inside / "far", inside / "up" / "outside", inside / ".." / "outside"):
        with pytest.raises(NotAPlainFile, match="leads out of the job's folder"):
            read_plain(path, inside)


def test_a_folder_whose_name_begins_alike_is_outside(tmp_path: Path) -> None:
    for name in ("job", "job-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(NotAPlainFile):
        read_plain(tmp_path / "job-2" / "file", tmp_path / "job")


def test_a_hard_link_is_not_opened_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "outside").write_text("outside")
    (tmp_path / "job" / "file").hardlink_to(tmp_path / "outside")
    with pytest.raises(NotAPlainFile, match="another name too"):
        read_plain(tmp_path / "job" / "file", tmp_path / "job")
    assert read_plain(tmp_path / "job" / "file") == b"outside"


def test_a_folder_that_became_a_link_since_it_was_checked_is_outside(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("outside")
    (tmp_path / "job").symlink_to("elsewhere")
    with pytest.raises(NotAPlainFile, match="leads out"):
        read_plain(tmp_path / "job" / "file", tmp_path / "job")


def test_no_file_beyond_the_limit_is_opened_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(NotAPlainFile, match="larger than 4 bytes"):
        read_plain(tmp_path / "large", tmp_path, most=4)
    assert read_plain(tmp_path / "large", tmp_path, most=5) == b"12345"


def test_a_missing_file_is_an_error_of_the_system_and_a_folder_is_no_plain_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "none", tmp_path)
    with pytest.raises(NotAPlainFile, match="is a folder"):
        open_plain(tmp_path, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "file" / "below", tmp_path)
    with pytest.raises(NotAPlainFile, match="cannot be opened"):
        open_plain(tmp_path / ("n" * 300), tmp_path)
