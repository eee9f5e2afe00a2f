"""Writes a staged state in the background: torch.distributed.checkpoint, fsync, checksums, manifest, rename.

DCP's default format keeps its metadata in a pickle, and everything that is not a tensor in pickled bytes.
So only tensors are given to DCP, with its safetensors writer, which needs neither; the rest is state.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.checkpoints.errors import cause
from jobs.checkpoints.listing import checkpoint_folder
from jobs.checkpoints.manifest import FORMAT, STATE, FileRecord, Health, Manifest, digest_of
from jobs.checkpoints.ranks import Ranks
from jobs.checkpoints.stager import Staged
from jobs.run_dir.result import versions
from jobs.run_dir.storage import Storage


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """Which checkpoint is written: its step, the attempt, and what the manifest says of them."""

    step: int
    attempt: int
    health: Health
    metrics: Mapping[str, float]
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _RankPart:
    """What one rank tells the others when its files lie there, or why they do not."""

    files: dict[str, FileRecord]
    parts: dict[str, Any]
    generators: Any
    error: Exception | None


class Writer:
    """Writes checkpoints; one at a time. ``write`` is collective and runs in a thread of its own."""

    def __init__(self, storage: Storage, ranks: Ranks) -> None:
        self._storage, self._ranks = storage, ranks
        self._serial = 0

    def write(self, place: CheckpointHeader, staged: Staged) -> Manifest | None:
        """Writes this rank's files; rank 0 then makes the checkpoint exist.

        Returns:
            On rank 0 what was written.

        Raises:
            Exception: the first error of any rank, on all ranks; nothing of the checkpoint is left then.
        """
        self._serial += 1
        name = checkpoint_folder(place.step)
        tag = f"{name}.{self._serial}"
        try:
            halves = self._ranks.gather(self._write_half(name, tag, staged))
            errors = [half.error for half in halves if half.error is not None]
            if errors:
                raise errors[0]
            return self._commit(place, name, tag, halves)
        finally:
            if self._ranks.rank == 0 or self._storage.private:
                self._storage.discard(tag)

    def _write_half(self, name: str, tag: str, staged: Staged) -> _RankPart:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        from jobs.checkpoints.dcp_single_process import save_alone

        files, error = {}, None
        try:
            if self._ranks.rank == 0:
                self._storage.begin(name)  # before any rank puts a file: DCP's planning comes between
            folder = self._storage.workspace(tag)
            writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
            if self._ranks.alone:
                save_alone(dict(staged.tensors), writer)
            else:
                save(dict(staged.tensors), storage_writer=writer, process_group=self._ranks.group)
            for file in sorted(folder.glob(f"shard-{self._ranks.rank + 1:05d}-*")):
                files[file.name] = self._put(name, file)
        except (Exception, CheckpointException) as caught:  # noqa: BLE001 - the latter is no Exception
            error = _plain(caught)
        return _RankPart(files, staged.parts, staged.generators, error)

    def _commit(
        self, place: CheckpointHeader, name: str, tag: str, halves: list[_RankPart]
    ) -> Manifest | None:
        """Rank 0 makes the checkpoint exist; all ranks learn whether it could."""
        manifest, error = None, None
        if self._ranks.rank == 0:
            try:
                manifest = self._finish(place, name, tag, halves)
            except Exception as caught:  # noqa: BLE001 - raised below, on all ranks
                error = _plain(caught)
        error = self._ranks.from_first(error)
        if error is not None:
            raise error
        return manifest

    def _finish(self, place: CheckpointHeader, name: str, tag: str, halves: list[_RankPart]) -> Manifest:
        state = self._storage.workspace(tag) / STATE
        state.write_text(json.dumps(_state(halves), allow_nan=False, separators=(",", ":")), encoding="utf-8")
        files = {name: record for half in halves for name, record in half.files.items()}
        manifest = Manifest(
            format=FORMAT,
            step=place.step,
            attempt=place.attempt,
            health=place.health,
            created=time.time(),
            world_size=self._ranks.world_size,
            files={**files, STATE: self._put(name, state)},
            metrics=dict(place.metrics),
            versions=versions(),
            spec=dict(place.spec),
        )
        self._storage.commit(name, tag, manifest.render())
        return manifest

    def _put(self, name: str, file: Path) -> FileRecord:
        with file.open("rb") as content:
            record = digest_of(content)
        self._storage.put(name, file)
        return record


def _state(halves: list[_RankPart]) -> dict[str, Any]:
    """Rank 0's view, each rank's generators, and where another rank's view differs from rank 0's."""
    first = halves[0].parts
    own = [{name: tree for name, tree in half.parts.items() if tree != first[name]} for half in halves]
    ranks = [{"generators": half.generators, "own": views} for half, views in zip(halves, own, strict=True)]
    return {"parts": first, "ranks": ranks}


def _plain(error: BaseException) -> Exception:
    """The same error, fit to be sent to another rank: DCP's holds tracebacks."""
    first = cause(error)
    if isinstance(first, OSError):
        return OSError(first.errno or 0, first.strerror or str(first))
    return RuntimeError(f"{type(first).__name__}: {first}")
