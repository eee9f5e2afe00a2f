"""The files of a job as the documents of a client: for whoever can read its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from guard.records import COLUMNS
from guard.rows import strict
from jobs.client.errors import JobNotFound, Unsupported
from jobs.client.models import CheckpointInfo, Progress, Series
from jobs.run_dir.reader import RunReader
from jobs.run_dir.storage import MANIFEST


class JobFiles(RunReader):
    """What the folder of one job contains, with its checkpoints and its report."""

    def incident_rows(self, *, start: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """The incidents, the oldest first, each with its ``outcome`` where it has one by now; arguments as of
        ``incidents``."""
        return [
            {
                "type": "incident",
                **incident.to_row(),
                "anchor": incident.anchor,
                "outcome": None if incident.outcome is None else incident.outcome.kind,
            }
            for incident in self.incidents(start=start, limit=limit)
        ]

    def metrics(
        self, columns: Iterable[str] = COLUMNS, *, after_attempt: int = -1, points: int = 2000
    ) -> Series:
        """Rows after an attempt, thinned to about this many points; what was no ordinary step stays."""
        table = self.steps(columns, after_attempt=after_attempt)
        return Series(rows=len(table), columns=table.thinned(points))

    def progress(self, spec: Mapping[str, Any] | None = None) -> Progress | None:
        """The newest step, from the end of the metrics file.

        Args:
            spec: the job's, if it is at hand: to read its file takes longer than all the rest.
        """
        row = self.last_step()
        if row is None:
            return None
        total = self.total_steps() if spec is None else (spec.get("train") or {}).get("max_steps")
        return Progress(**{**strict(row), "learning_rate": strict(row["lr"]), "total_steps": total})

    def checkpoints(self) -> list[CheckpointInfo]:
        """The checkpoints, the oldest first; those that cannot be read have the reason."""
        from jobs.checkpoints.listing import checkpoint_folder, manifests
        from jobs.run_dir.open_storage import open_storage

        good, damaged = manifests(open_storage(self.checkpoint_place(), self.below))
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

    def checkpoint_of(self, step: int) -> Path:
        """The folder of the checkpoint of a step.

        Raises:
            JobNotFound: there is none.
            Unsupported: the checkpoints are in a storage of their own.
        """
        from jobs.checkpoints.listing import checkpoint_folder

        name = self.folder.path.name
        if not isinstance(self.checkpoint_place(), Path):
            raise Unsupported(f"the checkpoints of {name} are in a storage of their own: read them there")
        folder = self.folder.checkpoints / checkpoint_folder(step)
        if not (folder / MANIFEST).exists():
            raise JobNotFound(f"{name} has no checkpoint of step {step}")
        return folder

    def report(self, *, remote: bool = True, env: Mapping[str, str] | None = None) -> str:
        """The report as HTML, of the files as they are now; see ``read_run``."""
        from jobs.report.data import read_run
        from jobs.report.page import render

        return render(read_run(self.folder.path, remote=remote, below=self.below, env=env))
