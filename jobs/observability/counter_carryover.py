"""The totals that Prometheus was shown of a job, so that no restart lowers a counter."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.record.totals import added, shortfall
from jobs.run_dir.jsonl import read_json

logger = logging.getLogger(__name__)


class CounterCarryover:
    """Totals as exported, in a file of the job's folder.

    A worker that starts again from a checkpoint counts on from there, and does again what was lost: those
    attempts did happen, so they are added to what was exported before. That outlives the worker, the hub and
    the cluster. result.json is not affected: there each step counts once.

    Args:
        path: of the file; missing for a new job.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = read_json(path)
        self._redone: Any = None
        self._failed = False

    def carry(self, snapshot: Mapping[str, Any]) -> dict[str, Any]:
        """The snapshot to push: its totals plus those that this process did not count.

        Call it first when the state is loaded and no step was done yet. It is written to disk before it is
        exported; a disk that is full is logged once.
        """
        if self._redone is None:
            exported = {} if self._before is None else self._before["totals"]
            self._redone = shortfall(exported, snapshot["totals"])
        exported = {
            "created": min(snapshot["created"], (self._before or snapshot)["created"]),
            "totals": added(snapshot["totals"], self._redone),
        }
        self._write(exported)
        return {**snapshot, **exported}

    def _write(self, exported: Mapping[str, Any]) -> None:
        """Not synced: it must survive the death of a process only."""
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(exported))
            temporary.replace(self._path)
        except OSError as error:
            if not self._failed:
                logger.warning("cannot write %s: %s", self._path.name, error.strerror)
            self._failed = True
