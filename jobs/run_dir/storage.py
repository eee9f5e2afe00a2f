"""What checkpoints need of a storage, and the one in a local folder; ``remote_storage`` is behind a URL.

Local: files are written under a temporary name, fsynced, and the folder is renamed. Remote: an object store
cannot rename a folder, so files are staged on the local disk, uploaded, and the manifest is uploaded last. In
both, one atomic write of the manifest makes the checkpoint exist.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Protocol

from jobs.run_dir.jsonl import sync, write_synced
from jobs.run_dir.plain_file import read_plain

MANIFEST = "manifest.json"
DAMAGED = "manifest.damaged.json"
_NAME = re.compile(r"step-[0-9]{8,18}")
_URL = re.compile(r"\b[a-z][a-z0-9+.\-]*://[^\s'\"]+")


class Storage(Protocol):
    """Stores checkpoints by name. Errors are ``OSError``."""

    private: bool
    """Whether every rank has its own workspace, rather than one for all."""

    def begin(self, name: str) -> None:
        """Called once, before any rank puts a file of ``name``."""

    def workspace(self, tag: str) -> Path:
        """A local folder in which this rank writes its files; created if needed."""

    def put(self, name: str, file: Path) -> None:
        """Makes one written file durable as part of the checkpoint ``name``."""

    def commit(self, name: str, tag: str, manifest: bytes) -> None:
        """Makes the checkpoint exist, replacing an older one of its name. Call it after all files are put."""

    def discard(self, tag: str) -> None:
        """Removes a workspace; never raises."""

    def sweep(self) -> None:
        """Removes the remains of killed writers; never raises."""

    def names(self) -> list[str]:
        """The checkpoints, oldest first."""

    def folders(self) -> list[str]:
        """All that looks like the folder of a checkpoint, whatever is in it."""

    def files(self, name: str) -> dict[str, int]:
        """The files of a checkpoint except its manifest, and their sizes in bytes."""

    def read(self, name: str, file: str) -> bytes:
        """The content of a file."""

    def replace_manifest(self, name: str, manifest: bytes) -> None:
        """Replaces the manifest atomically."""

    def set_aside(self, name: str) -> None:
        """Keeps a damaged checkpoint for inspection, but no longer lists it."""

    def aside(self) -> list[str]:
        """The damaged checkpoints that were set aside, oldest first."""

    def remove(self, name: str) -> None:
        """Deletes a checkpoint; its manifest goes first."""

    def local_copy(self, name: str, into: Path) -> Path:
        """A local folder with the checkpoint's files: its own if it is local, else a download."""


def shown(place: str | Path) -> str:
    """A path or URL to display: without user, password and options, which may be credentials."""
    scheme, found, rest = str(place).partition("://")
    if not found:
        return str(place)
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def without_keys(text: str) -> str:
    """A text with every URL as in ``shown``."""
    return _URL.sub(lambda url: shown(url[0]), text)


def is_name(name: str) -> bool:
    """Whether a folder of this name can be a checkpoint: one step has one name."""
    return _NAME.fullmatch(name) is not None and name == f"step-{step_of(name):08d}"


def step_of(name: str) -> int:
    """The step in the name of a checkpoint."""
    return int(name.removeprefix("step-"))


def _exists(path: Path, *, unsure: bool) -> bool:
    """``unsure`` where its folder cannot be read: whoever reads it finds what is wrong."""
    try:
        return path.exists()
    except OSError:
        return unsure


class LocalStorage:
    """Checkpoints in a folder of a local or mounted file system that all ranks share."""

    private = False

    def __init__(self, root: Path, below: Path | None = None) -> None:
        self._root, self._below = root, below

    def begin(self, name: str) -> None:
        """Nothing to do: an older checkpoint of this name is kept until the commit."""

    def workspace(self, tag: str) -> Path:
        folder = self._temporary(tag)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def put(self, name: str, file: Path) -> None:  # noqa: ARG002 - as in Storage
        sync(file)

    def commit(self, name: str, tag: str, manifest: bytes) -> None:
        folder, target = self._temporary(tag), self._root / name
        write_synced(folder / MANIFEST, manifest)
        sync(folder)
        replaced = self._root / f".{name}.old"
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        folder.rename(target)
        sync(self._root)
        shutil.rmtree(replaced, ignore_errors=True)

    def discard(self, tag: str) -> None:
        shutil.rmtree(self._temporary(tag), ignore_errors=True)

    def sweep(self) -> None:
        for replaced in self._root.glob(".step-*.old"):
            target = self._root / replaced.name.removeprefix(".").removesuffix(".old")
            if not target.exists():  # killed between the two renames: keep the older one
                replaced.rename(target)
        named = (path for path in self._root.glob("step-*") if is_name(path.name))
        half_removed = [p for p in named if not any(_exists(p / f, unsure=True) for f in (MANIFEST, DAMAGED))]
        for leftover in (*self._root.glob(".step-*.tmp"), *self._root.glob(".step-*.old"), *half_removed):
            if leftover.is_dir():  # rmtree would wait for the writer of a FIFO
                shutil.rmtree(leftover, ignore_errors=True)

    def names(self) -> list[str]:
        found = (path.name for path in self._root.glob("step-*") if _exists(path / MANIFEST, unsure=True))
        return sorted(filter(is_name, found), key=step_of)

    def folders(self) -> list[str]:
        return sorted(path.name for path in self._root.glob("step-*") if path.is_dir())

    def files(self, name: str) -> dict[str, int]:
        found = (self._root / name).iterdir()
        return {path.name: path.stat().st_size for path in found if path.name != MANIFEST}

    def read(self, name: str, file: str) -> bytes:
        return read_plain(self._root / name / file, self._below)

    def replace_manifest(self, name: str, manifest: bytes) -> None:
        folder = self._root / name
        temporary = folder / f".{MANIFEST}.tmp"
        try:
            write_synced(temporary, manifest)
            temporary.replace(folder / MANIFEST)
        finally:
            temporary.unlink(missing_ok=True)
        sync(folder)

    def set_aside(self, name: str) -> None:
        folder = self._root / name
        if folder.is_symlink():  # it may lead to another checkpoint
            folder.rename(self._root / f"{name}.damaged")
        else:
            (folder / MANIFEST).replace(folder / DAMAGED)

    def aside(self) -> list[str]:
        folders = self._root.glob("step-*")
        found = (path.name for path in folders if _exists(path / DAMAGED, unsure=False))
        return sorted(filter(is_name, found), key=step_of)

    def remove(self, name: str) -> None:
        folder = self._root / name
        if folder.is_symlink():
            folder.unlink()
            return
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def local_copy(self, name: str, into: Path) -> Path:  # noqa: ARG002 - as in Storage
        return self._root / name

    def _temporary(self, tag: str) -> Path:
        return self._root / f".{tag}.tmp"
