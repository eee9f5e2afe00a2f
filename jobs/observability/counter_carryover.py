"""What Prometheus was told of a job, so that no restart lowers a counter."""

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
    """Totals as told, in a file of the job's folder.

    A worker that starts again from a checkpoint counts on from there, and does again what was lost: those
    attempts did happen, so they come on top of what was told before. That outlives the worker, the hub and
    the cluster. What result.json says is not touched: there each step counts once.

    Args:
        path: of the file; missing for a job that starts anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = read_json(path)
        self._redone: Any = None
        self._failed = False

    def carry(self, snapshot: Mapping[str, Any]) -> dict[str, Any]:
        """The snapshot to push: its totals with those on top that this process did not count.

        Call it first when the state is loaded and no step was done yet. It is noted on disk before it is
        told; a disk that is full is logged once.
        """
        if self._redone is None:
            told = {} if self._before is None else self._before["totals"]
            self._redone = shortfall(told, snapshot["totals"])
        told = {
            "created": min(snapshot["created"], (self._before or snapshot)["created"]),
            "totals": added(snapshot["totals"], self._redone),
        }
        self._write(told)
        return {**snapshot, **told}

    def _write(self, told: Mapping[str, Any]) -> None:
        """Not synced: what is to be survived is the death of a process."""
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(told))
            temporary.replace(self._path)
        except OSError as error:
            if not self._failed:
                logger.warning("cannot write %s: %s", self._path.name, error.strerror)
            self._failed = True
