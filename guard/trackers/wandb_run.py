"""A run of W&B, or of trackio, which has the same calls."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from guard.trackers.base import Values
from guard.trackers.run_id import RunId


class WandbRun:
    """Metrics over attempts, the spec as config, incidents as alerts, files as artefacts.

    With ``resume`` the run whose id is in the folder is continued.
    """

    def __init__(self, module: str, project: str, *, offline: bool, resume: bool = False) -> None:
        self._name, self._project, self._offline, self._resume = module, project, offline, resume

    def open(self, name: str, spec: Mapping[str, Any], folder: Path) -> None:
        self._module = importlib.import_module(self._name)
        own: dict[str, Any] = {}
        if self._name == "wandb":
            folder.mkdir(parents=True, exist_ok=True)
            mode = "offline" if self._offline else None
            own = {"dir": str(folder), "mode": mode, "reinit": "create_new"}
        known = RunId(folder, self._name, self._project)
        if self._resume:
            run = known.read() or uuid4().hex[:8]
            own |= {"resume": "allow", **({"id": run} if self._name == "wandb" else {})}
            known.write(run)
        self._run = self._module.init(project=self._project, name=name, config=dict(spec), **own)

    def values(self, at: int, values: Values) -> None:
        self._run.log(dict(values), step=at)

    def event(self, at: int, level: str, title: str, text: str) -> None:
        levels = getattr(self._module, "AlertLevel", None)
        options = {} if levels is None else {"level": levels[{"warning": "WARN"}.get(level, level.upper())]}
        self._run.alert(title=title, text=f"attempt {at}: {text}", **options)

    def artefact(self, path: Path) -> None:
        kind = "checkpoint" if path.is_dir() else "file"
        artifact = self._module.Artifact(f"{self._run.name}-{path.stem}".replace(" ", "-"), type=kind)
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
        self._run.log_artifact(artifact)

    def close(self, status: str) -> None:
        if self._name == "wandb":
            self._run.finish(exit_code=0 if status in ("succeeded", "stopped") else 1)
        else:
            self._run.finish()
