"""The contents of a folder of checkpoints: which are good, which are damaged, which is the newest."""

from __future__ import annotations

from pathlib import Path

from jobs.checkpoints.errors import DamagedCheckpoint
from jobs.checkpoints.manifest import Manifest, parse
from jobs.run_dir.open_storage import open_storage
from jobs.run_dir.storage import MANIFEST, Storage, shown, step_of


def checkpoint_folder(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"step-{step:08d}"


def read_manifest(storage: Storage, name: str) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        DamagedCheckpoint: it is damaged, foreign, or of another step than the folder's name.
    """
    try:
        manifest = parse(storage.read(name, MANIFEST))
    except OSError as error:
        raise DamagedCheckpoint(f"{MANIFEST} cannot be read: {error.strerror or error}") from None
    if step_of(name) != manifest.step:
        raise DamagedCheckpoint(f"{MANIFEST} is that of step {manifest.step}")
    return manifest


def manifests(storage: Storage) -> tuple[list[Manifest], dict[str, str]]:
    """The manifests that can be read, oldest first; and by name what is wrong with the others."""
    readable, damaged = [], {}
    for name in storage.names():
        try:
            readable.append(read_manifest(storage, name))
        except DamagedCheckpoint as error:
            damaged[name] = str(error)
    return readable, damaged


def unlisted(storage: Storage) -> dict[str, str]:
    """By the name that each should have: folders that are not taken for a checkpoint, and why."""
    found, known = {}, {*storage.names(), *storage.aside()}
    for name in storage.folders():
        step = name.removeprefix("step-")
        if step.isdecimal() and step.isascii() and (wanted := checkpoint_folder(int(step))) not in known:
            if wanted != name:
                found[wanted] = f"is in the folder {name}, where no resume finds it: rename that to {wanted}"
            elif not storage.private:  # there it may be one that is being written
                found[wanted] = f"has no {MANIFEST}: it cannot be resumed from, and the next start removes it"
    return found


def newest_step(folder: str | Path | Storage) -> int | None:
    """The step of the newest good checkpoint in a folder or under a URL, None where there is none.

    Its files are not verified here.
    """
    storage = open_storage(folder) if isinstance(folder, str | Path) else folder
    return max((m.step for m in manifests(storage)[0] if m.health == "good"), default=None)


def checkpoint_name(folder: str | Path, step: int) -> str:
    """A checkpoint relative to the job's folder; under a URL, all of that but its keys and options."""
    text = shown(folder)
    return f"{text if '://' in text else Path(text).name}/{checkpoint_folder(step)}"
