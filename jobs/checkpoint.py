"""Checkpoints on disk: written to a temporary name, synced, renamed; loaded without executing anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from guard import rng
from guard.snapshot import Stateful

FILE = "state.pt"


class Checkpoints:
    """Saves and loads everything that a run resumes from.

    Args:
        folder: where ``step-NNNNNNNN`` folders lie.
        parts: the objects to save, by name, in the order in which they are loaded (the guard after what it
            guards); each has ``state_dict`` and ``load_state_dict``.
        keep: how many checkpoints stay on disk.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Stateful], *, keep: int = 3) -> None:
        self._folder = folder
        self._parts = dict(parts)
        self._keep = keep

    def save(self, step: int) -> str | None:
        """Writes the present state. Collective: every rank calls it; rank 0 writes.

        Returns:
            On rank 0, why the disk refused, if it did.
        """
        generators = _gather(rng.capture())
        if _rank() != 0:
            return None
        state = {name: part.state_dict() for name, part in self._parts.items()}
        try:
            self._write(self._path(step), {"step": step, "parts": state, "generators": generators})
            self._retire()
        except (OSError, RuntimeError) as error:
            shutil.rmtree(self._temporary(step), ignore_errors=True)
            # torch.save says RuntimeError, and nothing of use, when a disk is full
            reason = error.strerror if isinstance(error, OSError) else None
            return reason or "it could not be written whole; is the disk full?"
        return None

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of steps that a rollback has undone."""
        if _rank() == 0:
            for path in self._all():
                if path > self._path(step):
                    shutil.rmtree(path, ignore_errors=True)

    def latest(self) -> str | None:
        """The newest checkpoint, relative to the job's folder."""
        step = newest_step(self._folder)
        return None if step is None else checkpoint_name(self._folder, step)

    def load_latest(self) -> int | None:
        """Loads the newest checkpoint on this rank and returns its step; None where there is none."""
        found = self._all()
        if not found:
            return None
        state = torch.load(found[-1] / FILE, weights_only=True, map_location="cpu")
        generators = state["generators"]
        if len(generators) == _world_size():
            rng.restore(generators[_rank()])  # before the guard, whose first snapshot holds them
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        return int(state["step"])

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _temporary(self, step: int) -> Path:
        return self._folder / f".step-{step:08d}.tmp"

    def _all(self) -> list[Path]:
        return _complete(self._folder)

    def _write(self, target: Path, state: dict[str, Any]) -> None:
        temporary = self._temporary(int(state["step"]))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with (temporary / FILE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        replaced = target.with_name(f".{target.name}.old")
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)

    def _retire(self) -> None:
        for path in self._all()[: -self._keep]:
            shutil.rmtree(path, ignore_errors=True)


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint in a folder, None where there is none."""
    found = _complete(folder)
    return int(found[-1].name.removeprefix("step-")) if found else None


def checkpoint_name(folder: Path, step: int) -> str:
    """A checkpoint relative to the job's folder."""
    return f"{folder.name}/step-{step:08d}"


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-????????") if (path / FILE).exists())


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gather(state: dict[str, Any]) -> list[Any]:
    if _world_size() == 1:
        return [state]
    gathered: list[Any] = [None] * _world_size()
    dist.all_gather_object(gathered, state)
    return gathered
