"""Uploaded working directories: nothing in them may reach beyond their folder."""

import io
import stat
import struct
import zipfile
from pathlib import PurePosixPath

from service.api.context import Limits
from service.api.problems import Problem

_KINDS = {False: (0, stat.S_IFREG), True: (0, stat.S_IFDIR)}
"""Of a file, and of a folder."""
_LONGEST = 255
"""Bytes of a name that file systems take."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The others may allocate gigabytes before they return a byte."""

_END, _ENTRY = b"PK\x05\x06", b"PK\x01\x02"
_END_REACH = 22 + (1 << 16)
_UNREADABLE = (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OSError, OverflowError)


def check_archive(content: bytes, limits: Limits) -> int:
    """Checks a zip file without unpacking it to disk; returns how many files it contains.

    Raises:
        Problem: it is not a zip file, is damaged, is too large unpacked, or contains a path that leaves the
            folder, a link, or anything else that is not a plain file.
    """
    if _announced(content) > limits.unpacked_files:
        raise Problem(413, f"the archive contains more than {limits.unpacked_files} files")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _check(archive, limits)
    except _UNREADABLE:
        raise Problem(422, "the body is not a readable zip file: send a folder packed as .zip") from None


def _announced(content: bytes) -> int:
    """At most how many entries its directory has, counted before they are parsed: a short file can list
    millions."""
    end = content.rfind(_END, max(0, len(content) - _END_REACH))
    if end < 0 or end + 22 > len(content):
        return 0
    (size,) = struct.unpack_from("<L", content, end + 12)
    return content.count(_ENTRY, max(0, end - size), end)


def _check(archive: zipfile.ZipFile, limits: Limits) -> int:
    seen: set[str] = set()
    for entry in archive.infolist():
        _check_name(entry, seen)
    files = [entry for entry in archive.infolist() if not entry.is_dir()]
    folders = {str(folder) for name in seen for folder in PurePosixPath(name).parents}
    if both := folders & {str(PurePosixPath(entry.orig_filename)) for entry in files}:
        raise Problem(422, f"the archive contains {min(both)[:200]!r} as a file and as a folder")
    left = limits.unpacked_bytes
    for entry in files:
        left -= _unpacked_size(archive, entry, left)
    return len(files)


def _check_name(entry: zipfile.ZipInfo, seen: set[str]) -> None:
    name = entry.orig_filename
    path, shown = PurePosixPath(name), name[:200]
    if not name.isprintable() or not 0 < len(name) <= 1000:
        raise Problem(422, f"the archive contains {shown!r}: a name has at most 1000 printable characters")
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts or ":" in path.parts[0]:
        raise Problem(422, f"the archive contains {shown!r}: a path must stay inside the folder")
    if max(len(part.encode(errors="replace")) for part in path.parts) > _LONGEST:
        raise Problem(422, f"the archive contains {shown!r}: a name has at most {_LONGEST} bytes")
    if stat.S_IFMT(entry.external_attr >> 16) not in _KINDS[entry.is_dir()]:
        raise Problem(422, f"the archive contains {shown!r}, not a plain file: remove it")
    if entry.flag_bits & 1 or entry.compress_type not in _METHODS:
        raise Problem(422, f"the archive contains {shown!r}, encrypted or not packed with deflate")
    if str(path) in seen:
        raise Problem(422, f"the archive contains {shown!r} twice")
    seen.add(str(path))


def _unpacked_size(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, left: int) -> int:
    """Counted, since the size that the archive states may be false; this checks the checksums too."""
    size = 0
    with archive.open(entry) as file:
        while piece := file.read(1 << 20):
            size += len(piece)
            if size > left:
                raise Problem(413, "the archive is too large when unpacked: remove data from it")
    return size
