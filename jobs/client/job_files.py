"""The files of a job, read for people who ask about it: whole or cut, while it runs or after."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from guard.rows import strict
from jobs.client.models import CheckpointInfo, Progress, Series
from jobs.run_dir.jsonl import iter_jsonl, parse_row, read_json, read_jsonl
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec

FIRST_BYTES, TAIL_BYTES = 1 << 13, 1 << 18
"""Read from the end of the metrics for the newest step: first little, then more."""

COLUMNS = ("step", "attempt", "time", "loss", "grad_norm", "lr", "action", "verdict")


class RunReader:
    """Reads the folder of one job; whatever is missing there is empty."""

    def __init__(self, path: Path) -> None:
        self.folder = RunDir(path)

    def incidents(self) -> list[dict[str, Any]]:
        """The incidents, the first one first, each with its ``outcome`` where it has one by now."""
        found: dict[Any, dict[str, Any]] = {}
        for row in read_jsonl(self.folder.incidents):
            if row.get("type") == "incident":
                found[row.get("id")] = {**row, "outcome": None}
            elif row.get("type") == "outcome" and row.get("incident") in found:
                found[row["incident"]]["outcome"] = row.get("outcome")
        return [strict(row) for row in found.values()]

    def metrics(
        self, columns: Iterable[str] = COLUMNS, *, after_attempt: int = -1, points: int = 2000
    ) -> Series:
        """Rows after an attempt, thinned out to about so many points; what was no ordinary step stays."""
        names = list(dict.fromkeys(("attempt", "step", *columns)))
        rows = [
            row
            for row in iter_jsonl(self.folder.metrics)
            if "action" in row and row.get("attempt", 0) > after_attempt
        ]
        stride = max(1, -(-len(rows) // max(points, 1)))
        last = len(rows) - 1
        kept = [row for i, row in enumerate(rows) if i % stride == 0 or i == last or _odd(row)]
        return Series(rows=len(rows), columns={n: strict([row.get(n) for row in kept]) for n in names})

    def progress(self, spec: Mapping[str, Any] | None = None) -> Progress | None:
        """The newest step, from the end of the metrics file.

        Args:
            spec: the job's, if it is at hand: to read the file of it takes longer than all the rest.
        """
        for row in _last_rows(self.folder.metrics):
            if "action" in row and "step" in row:
                told = strict({k: row.get(k) for k in ("step", "attempt", "loss", "grad_norm", "time")})
                total = self._total_steps() if spec is None else (spec.get("train") or {}).get("max_steps")
                return Progress(**told, learning_rate=strict(row.get("lr")), total_steps=total)
        return None

    def result(self) -> dict[str, Any] | None:
        """What result.json says."""
        found = read_json(self.folder.result)
        return None if found is None else strict(found)

    def spec(self) -> JobSpec | None:
        """The spec that the job ran with; None if there is none that can be read."""
        try:
            return JobSpec.load(self.folder.spec)
        except ValueError:
            return None

    def checkpoint_place(self) -> str | Path:
        """The folder of the checkpoints, or the URL that the spec sends them to."""
        spec = self.spec()
        remote = spec is not None and spec.train.checkpoint_storage is not None
        return spec.checkpoint_place if remote and spec is not None else self.folder.checkpoints

    def checkpoints(self) -> list[CheckpointInfo]:
        """The checkpoints, the oldest first; those that cannot be read say why."""
        from jobs.checkpoints.listing import checkpoint_folder, manifests
        from jobs.run_dir.storage import open_storage

        place = self.checkpoint_place()
        good, damaged = manifests(open_storage(place))
        return [
            *(
                CheckpointInfo(
                    name=checkpoint_folder(m.step),
                    step=m.step,
                    health=m.health,
                    created=m.created,
                    size=m.size,
                    metrics=strict(m.metrics),
                )
                for m in good
            ),
            *(CheckpointInfo(name=name, health="damaged", problem=why) for name, why in damaged.items()),
        ]

    def report(self, *, remote: bool = True) -> str:
        """The report as HTML, of the files as they are now; ``remote`` asks a storage elsewhere too."""
        from jobs.report.data import read_run
        from jobs.report.page import render

        return render(read_run(self.folder.path, remote=remote))

    def exists(self) -> bool:
        """Whether this is the folder of a job."""
        return self.folder.spec.exists() or self.folder.metrics.exists()

    def marks(self) -> dict[str, str]:
        """Of the files that tell how far the job is: what changes whenever they do; nothing of one that is
        not there. No clock is compared with another's."""
        found = {}
        for name, path in (("result", self.folder.result), ("metrics", self.folder.metrics)):
            with suppress(OSError):
                state = path.stat()
                found[name] = f"{state.st_ino}:{state.st_mtime_ns}:{state.st_size}"
        return found

    def _total_steps(self) -> int | None:
        try:
            state = self.folder.spec.stat()
        except OSError:
            return None
        return _total_steps(self.folder.spec, state.st_mtime_ns, state.st_size)


def _odd(row: dict[str, Any]) -> bool:
    return row.get("action") not in ("applied", "clipped") or row.get("verdict") != "ok"


@lru_cache(maxsize=4096)
def _total_steps(path: Path, _mtime_ns: int, _size: int) -> int | None:
    """To read a spec takes as long as to read a hundred last rows, and it hardly ever changes."""
    spec = RunReader(path.parent).spec()
    return None if spec is None else spec.train.max_steps


def _last_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows at the end of a file, the last one first, no more of them read than are asked for."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            for reach in (FIRST_BYTES, TAIL_BYTES):
                file.seek(max(0, end - reach))
                lines = file.read(reach).splitlines(keepends=True)
                yield from (row for line in reversed(lines) if (row := parse_row(line)) is not None)
    except OSError:
        return
