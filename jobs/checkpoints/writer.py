"""Writes a staged state in the background: torch.distributed.checkpoint, fsync, checksums, manifest, rename.

DCP's default format keeps its metadata and everything that is not a tensor in pickles. So DCP gets only the
tensors, with its safetensors writer, which needs no pickle; the rest goes to state.json.
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
    """What the manifest records of a checkpoint beside its files."""

    step: int
    attempt: int
    health: Health
    metrics: Mapping[str, float]
    spec: Mapping[str, Any]
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _RankPart:
    """What one rank has written, sent to all ranks: its files, or the error that prevented them."""

    files: dict[str, FileRecord]
    parts: dict[str, Any]
    generators: Any
    error: Exception | None


class Writer:
    """Writes checkpoints, one at a time. ``write`` is collective and runs in its own thread."""

    def __init__(self, storage: Storage, ranks: Ranks) -> None:
        self._storage, self._ranks = storage, ranks
        self._serial = 0

    def write(self, header: CheckpointHeader, staged: Staged) -> Manifest | None:
        """Writes this rank's files; rank 0 then makes the checkpoint exist.

        Returns:
            On rank 0 what was written.

        Raises:
            Exception: the first error of any rank, on all ranks; then nothing of the checkpoint remains.
        """
        self._serial += 1
        name = checkpoint_folder(header.step)
        tag = f"{name}.{self._serial}"
        try:
            # All-gather over gloo; every rank writes the same checkpoint, and waits for the slowest writer.
            rank_parts = self._ranks.gather(self._write_part(name, tag, staged))
            errors = [part.error for part in rank_parts if part.error is not None]
            if errors:
                raise errors[0]
            return self._commit(header, name, tag, rank_parts)
        finally:
            if self._ranks.rank == 0 or self._storage.private:
                self._storage.discard(tag)

    def _write_part(self, name: str, tag: str, staged: Staged) -> _RankPart:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        from jobs.checkpoints.dcp_single_process import save_local

        files, error = {}, None
        try:
            if self._ranks.rank == 0:
                # Before any rank puts a file: DCP's planning synchronizes in between.
                self._storage.begin(name)
            folder = self._storage.workspace(tag)
            writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
            if self._ranks.group is None:
                save_local(dict(staged.tensors), writer)
            else:
                # DCP's gather and scatter over gloo; every rank writes, and waits for the others' plans.
                save(dict(staged.tensors), storage_writer=writer, process_group=self._ranks.group)
            for file in sorted(folder.glob(f"shard-{self._ranks.rank + 1:05d}-*")):
                files[file.name] = self._put(name, file)
        except (Exception, CheckpointException) as caught:  # noqa: BLE001 - the latter does not derive from Exception
            error = _picklable(caught)
        return _RankPart(files, staged.parts, staged.generators, error)

    def _commit(
        self, header: CheckpointHeader, name: str, tag: str, rank_parts: list[_RankPart]
    ) -> Manifest | None:
        """Rank 0 commits the checkpoint; all ranks learn whether it succeeded."""
        manifest, error = None, None
        if self._ranks.rank == 0:
            try:
                manifest = self._finish(header, name, tag, rank_parts)
            except Exception as caught:  # noqa: BLE001 - raised below, on all ranks
                error = _picklable(caught)
        # All-gather; every rank gets here after the same write, and waits for rank 0's commit.
        error = self._ranks.from_first(error)
        if error is not None:
            raise error
        return manifest

    def _finish(self, header: CheckpointHeader, name: str, tag: str, rank_parts: list[_RankPart]) -> Manifest:
        state = self._storage.workspace(tag) / STATE
        text = json.dumps(_state(rank_parts), allow_nan=False, separators=(",", ":"))
        state.write_text(text, encoding="utf-8")
        files = {name: record for part in rank_parts for name, record in part.files.items()}
        manifest = Manifest(
            format=FORMAT,
            step=header.step,
            attempt=header.attempt,
            health=header.health,
            created=time.time(),
            world_size=self._ranks.world_size,
            files={**files, STATE: self._put(name, state)},
            metrics=dict(header.metrics),
            versions=versions(),
            spec=dict(header.spec),
            data=dict(header.data),
            parts=sorted(rank_parts[0].parts),
        )
        self._storage.commit(name, tag, manifest.render())
        return manifest

    def _put(self, name: str, file: Path) -> FileRecord:
        with file.open("rb") as content:
            record = digest_of(content)
        self._storage.put(name, file)
        return record


def _state(rank_parts: list[_RankPart]) -> dict[str, Any]:
    """Rank 0's view, each rank's generators, and where another rank's view differs from rank 0's."""
    first = rank_parts[0].parts
    ranks = [
        {"generators": part.generators, "own": {k: v for k, v in part.parts.items() if v != first[k]}}
        for part in rank_parts
    ]
    return {"parts": first, "ranks": ranks}


def _picklable(error: BaseException) -> Exception:
    """The same error without DCP's tracebacks, which cannot be sent to another rank."""
    first = cause(error)
    if isinstance(first, OSError):
        return OSError(first.errno or 0, first.strerror or str(first))
    return RuntimeError(f"{type(first).__name__}: {first}")
