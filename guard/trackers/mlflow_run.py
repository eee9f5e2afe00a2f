"""A run of MLflow, through its client: no global state, so several runs a process are fine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.trackers.base import Values
from guard.trackers.run_id import RunId

_LONGEST_PARAM = 500
_PARAMS_A_CALL = 100
_STATUS = {"succeeded": "FINISHED", "stopped": "KILLED"}


class MlflowRun:
    """Metrics over attempts, the spec as parameters, incidents as tags, files as artefacts.

    With ``resume`` the run whose id is in the folder is continued; its parameters stay.
    """

    def __init__(self, project: str, url: str | None, *, resume: bool = False) -> None:
        self._project, self._url, self._resume = project, url, resume

    def open(self, name: str, spec: Mapping[str, Any], folder: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = client = MlflowClient(self._url)
        known = RunId(folder, "mlflow", self._project)
        if self._resume and (run := known.read()):
            client.update_run(run, status="RUNNING")
            self._run = run
            return
        experiment = client.get_experiment_by_name(self._project)
        where = client.create_experiment(self._project) if experiment is None else experiment.experiment_id
        self._run = client.create_run(where, run_name=name).info.run_id
        params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in spec.items()]
        for at in range(0, len(params), _PARAMS_A_CALL):
            client.log_batch(self._run, params=params[at : at + _PARAMS_A_CALL])
        if self._resume:
            known.write(self._run)

    def values(self, at: int, values: Values) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, at) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def event(self, at: int, level: str, title: str, text: str) -> None:
        self._client.set_tag(self._run, f"gradguard.{level}.{at}", f"{title}: {text}"[:_LONGEST_PARAM])

    def artefact(self, path: Path) -> None:
        if path.is_dir():
            self._client.log_artifacts(self._run, str(path), path.name)
        else:
            self._client.log_artifact(self._run, str(path))

    def close(self, status: str) -> None:
        self._client.set_terminated(self._run, _STATUS.get(status, "FAILED"))
