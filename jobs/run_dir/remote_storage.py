"""Checkpoints behind a URL: S3, GCS and HDFS through pyarrow, any other scheme through fsspec."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pyarrow
from pyarrow import fs

from jobs.errors import JobError
from jobs.run_dir.storage import DAMAGED, MANIFEST, is_name, shown, step_of


class RemoteStorage:
    """Checkpoints under ``url``; options of the file system are part of it, as in
    ``s3://bucket/folder?region=eu-west-1`` or ``?endpoint_override=http://host:9000``.

    Raises:
        JobError: no file system for this URL.
    """

    private = True

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = file_system(url)
        except (ImportError, ValueError) as error:
            raise JobError(f"cannot store checkpoints at {shown(url)}: {error}") from None
        self._staging: dict[str, Path] = {}

    def begin(self, name: str) -> None:
        """Removes an older checkpoint of this name, damaged or not: its files would mix with the new ones."""
        if name in self._steps():
            self.remove(name)

    def workspace(self, tag: str) -> Path:
        if tag not in self._staging:
            self._staging[tag] = Path(tempfile.mkdtemp(prefix="gradguard-"))
        return self._staging[tag]

    def put(self, name: str, file: Path) -> None:
        self._fs.create_dir(self._path(name), recursive=True)
        with self._fs.open_output_stream(self._path(name, file.name)) as out, file.open("rb") as source:
            shutil.copyfileobj(source, out, 1 << 20)

    def commit(self, name: str, tag: str, manifest: bytes) -> None:  # noqa: ARG002 - as in Storage
        self.replace_manifest(name, manifest)

    def discard(self, tag: str) -> None:
        if tag in self._staging:
            shutil.rmtree(self._staging.pop(tag), ignore_errors=True)

    def sweep(self) -> None:
        whole = self.names()
        for name in self._steps():
            if name not in whole and DAMAGED not in self._listing(name):
                self.remove(name)

    def names(self) -> list[str]:
        return [name for name in self._steps() if MANIFEST in self._listing(name)]

    def folders(self) -> list[str]:
        found = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        names = (info.base_name for info in found if info.type == fs.FileType.Directory)
        return sorted(name for name in names if name.startswith("step-"))

    def files(self, name: str) -> dict[str, int]:
        return {file: size for file, size in self._listing(name).items() if file != MANIFEST}

    def read(self, name: str, file: str) -> bytes:
        with self._open(name, file) as source:
            return bytes(source.read())

    def replace_manifest(self, name: str, manifest: bytes) -> None:
        with self._fs.open_output_stream(self._path(name, MANIFEST)) as out:
            out.write(manifest)

    def set_aside(self, name: str) -> None:
        self._fs.move(self._path(name, MANIFEST), self._path(name, DAMAGED))

    def aside(self) -> list[str]:
        return [name for name in self._steps() if DAMAGED in self._listing(name)]

    def remove(self, name: str) -> None:
        if MANIFEST in self._listing(name):
            self._fs.delete_file(self._path(name, MANIFEST))
        self._fs.delete_dir(self._path(name))

    def local_copy(self, name: str, into: Path) -> Path:
        into.mkdir(parents=True, exist_ok=True)
        for file in self.files(name):
            with self._open(name, file) as source, (into / file).open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
        return into

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _open(self, name: str, file: str) -> pyarrow.NativeFile:
        return self._fs.open_input_stream(self._path(name, file), compression=None)

    def _steps(self) -> list[str]:
        return sorted(filter(is_name, self.folders()), key=step_of)

    def _listing(self, name: str) -> dict[str, int]:
        found = self._fs.get_file_info(fs.FileSelector(self._path(name), allow_not_found=True))
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}


def file_system(url: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URL, and the path in it.

    Raises:
        ImportError, ValueError: neither pyarrow nor fsspec supports the URL's scheme.
    """
    try:
        system, path = fs.FileSystem.from_uri(url)
    except pyarrow.ArrowInvalid:
        from fsspec.core import url_to_fs

        found, path = url_to_fs(url)
        system, path = fs.PyFileSystem(fs.FSSpecHandler(found)), str(path)
    return system, path.rstrip("/")
