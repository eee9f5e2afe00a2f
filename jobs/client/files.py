"""The files of a job, read for people who ask about it: whole or cut, while it runs or after."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guard.record import strict
from jobs.client.models import CheckpointInfo, Progress, Series
from jobs.files import iter_jsonl, parse_row, read_json, read_jsonl
from jobs.folder import JobFolder
from jobs.spec import JobSpec

TAIL_BYTES = 1 << 18
COLUMNS = ("step", "attempt", "time", "loss", "grad_norm", "lr", "action", "verdict")


class JobFiles:
    """Reads the folder of one job; whatever is missing there is empty."""

    def __init__(self, path: Path) -> None:
        self.folder = JobFolder(path)

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

    def progress(self) -> Progress | None:
        """The newest step, from the end of the metrics file."""
        for row in reversed(_last_rows(self.folder.metrics)):
            if "action" in row and "step" in row:
                told = strict({k: row.get(k) for k in ("step", "attempt", "loss", "grad_norm", "time")})
                return Progress(**told, learning_rate=strict(row.get("lr")), total_steps=self._total_steps())
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

    def checkpoints(self) -> list[CheckpointInfo]:
        """The checkpoints, the oldest first; those that cannot be read say why."""
        from jobs.checkpoints.folder import manifests
        from jobs.checkpoints.storage import open_storage
        from jobs.checkpoints.write import checkpoint_folder

        spec = self.spec()
        remote = spec is not None and spec.train.checkpoint_storage is not None
        place = spec.checkpoint_place if remote and spec is not None else self.folder.checkpoints
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

    def report(self) -> str:
        """The report as HTML, of the files as they are now."""
        from jobs.report.data import read_run
        from jobs.report.page import render

        return render(read_run(self.folder.path))

    def exists(self) -> bool:
        """Whether this is the folder of a job."""
        return self.folder.spec.exists() or self.folder.metrics.exists()

    def touched(self) -> float | None:
        """When the job last recorded a step."""
        try:
            return self.folder.metrics.stat().st_mtime
        except OSError:
            return None

    def _total_steps(self) -> int | None:
        spec = self.spec()
        return None if spec is None else spec.train.max_steps


def _odd(row: dict[str, Any]) -> bool:
    return row.get("action") not in ("applied", "clipped") or row.get("verdict") != "ok"


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The rows in the last stretch of a file, the first of which may be cut."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).splitlines(keepends=True)
    except OSError:
        return []
    return [row for line in lines if (row := parse_row(line)) is not None]
