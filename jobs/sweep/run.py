"""Runs a sweep: one job a trial, on Ray Tune, with the same folders, guard and reports as any job."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from jobs.cluster.driver import metrics_host
from jobs.cluster.session import ClusterInfo, check_resources, ray_session
from jobs.errors import JobError
from jobs.observability.driver_events import interrupts
from jobs.observability.hub import ensure_hub
from jobs.placement.plan import worker_resources
from jobs.run_dir.jsonl import read_json, write_json_atomic
from jobs.spec.job_spec import JobSpec
from jobs.sweep.spec import SweepSpec, no_sweep
from jobs.sweep.table import PRUNED, SWEEP, Trial, ranked, trial_of
from jobs.sweep.trial import JobTrial
from jobs.training.optim import check_by_path
from jobs.workloads import load_workload

MOST_EVALUATIONS = 10_000
NEXT_TO_NOTHING = {"memory": 1}
"""Of a trial itself; the workers of its job reserve what they need. Tune takes no trial without any."""
MAY_DIFFER = ("trials", "concurrent", "early_stopping")
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_sweep(
    sweep: SweepSpec, *, show: Callable[[str], None], address: str | None = None, resume: bool = False
) -> list[Trial]:
    """Trains all trials, and writes ``sweep.json`` in the sweep's folder.

    Args:
        sweep: which jobs.
        show: gets a line for each trial that starts or ends.
        address: of a Ray cluster; default: an embedded one.
        resume: trials that have ended keep their result, the others continue from their checkpoints.

    Returns:
        All trials, the best first. After Ctrl-C those that trained are ``stopped``, and can be resumed.

    Raises:
        JobError, SpecError: the sweep cannot run; one line with the reason.
    """
    specs = [spec.absolute() for spec in sweep.jobs()]
    if address is None and "RAY_ADDRESS" not in os.environ:
        check_data(specs)
    folder = Path(specs[0].storage)
    rows = _rows_before(sweep, folder, resume=resume)
    _write(sweep, folder, rows)
    stop = folder / ".stop"
    stop.unlink(missing_ok=True)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    first = specs[0]
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    timeout = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(first.scale.stall_timeout_s)}
    cpus = max(math.ceil(first.scale.workers * first.scale.cpus_per_worker), os.cpu_count() or 1)
    with ray_session(address, cpus, train_defaults=timeout) as cluster, interrupts() as interrupted:
        ensure_hub(first.metrics.port, metrics_host(first))  # a trial cannot start it
        watcher = Watcher(sweep, specs, folder, rows, show, interrupted, stop)
        try:
            _fit(sweep, specs, watcher, stop, _at_a_time(sweep, specs, cluster))
        finally:
            stop.unlink(missing_ok=True)
    return ranked(watcher.trials(), maximize=sweep.maximize)


def check_data(specs: Sequence[JobSpec]) -> None:
    """Reads the data of the trials here, each data set once: what is wrong shows before Ray starts.

    Raises:
        DataError, WorkloadError, SpecError, JobError: the data, the workload or an import path is wrong.
    """
    samples: dict[str, int] = {}
    for spec in specs:
        data = spec.data.model_dump(mode="json", exclude={"batch_size"})
        name = json.dumps([spec.workload, spec.options, data, spec.model.name, spec.seed], sort_keys=True)
        if name not in samples:
            samples[name] = load_workload(spec).n_train
        check_by_path(spec, spec.total_steps(samples[name]))


def _fit(sweep: SweepSpec, specs: list[JobSpec], watcher: Watcher, stop: Path, at_a_time: int) -> None:
    todo = [n for n in range(len(specs)) if n not in watcher.rows or watcher.rows[n].status != PRUNED]
    parameters = {
        "specs": [spec.model_dump(mode="json") for spec in specs],
        "metric": sweep.metric,
        "stop": str(stop),
    }
    trainable = tune.with_resources(tune.with_parameters(JobTrial, **parameters), NEXT_TO_NOTHING)
    tuner = tune.Tuner(
        trainable,
        param_space={"number": tune.grid_search(todo)},
        tune_config=tune.TuneConfig(
            metric="value",
            mode="max" if sweep.maximize else "min",
            scheduler=_scheduler(sweep),
            max_concurrent_trials=at_a_time,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(stop.parent / ".tune"),
            callbacks=[watcher],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            stop=watcher.stopper,
            verbose=0,
        ),
    )
    tuner.fit()


def _scheduler(sweep: SweepSpec) -> TrialScheduler:
    if sweep.early_stopping is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="evaluations",
        max_t=MOST_EVALUATIONS,
        grace_period=sweep.early_stopping.grace,
        reduction_factor=sweep.early_stopping.reduction,
    )


def _at_a_time(sweep: SweepSpec, specs: list[JobSpec], cluster: ClusterInfo) -> int:
    """How many jobs fit on the cluster at once, at least one."""
    most = 1
    for spec in specs[:1]:
        scale = spec.scale
        use_gpu = scale.device == "gpu" or (scale.device == "auto" and cluster.gpus >= scale.fewest_workers)
        each = worker_resources(scale, use_gpu=use_gpu)
        needed = {name: scale.fewest_workers * amount for name, amount in each.items()}
        check_resources(needed, workers=scale.fewest_workers)
        have = {"CPU": cluster.cpus, "GPU": cluster.gpus}
        most = min((int(have[n] / needed[n]) for n in have if needed.get(n)), default=1)
    return max(1, min(most, sweep.concurrent or most))


def _rows_before(sweep: SweepSpec, folder: Path, *, resume: bool) -> dict[int, Trial]:
    """The trials that an interrupted sweep of the same spec has left, by number from 0."""
    before = read_json(folder / SWEEP)
    if before is None:
        return {}
    if not resume:
        raise JobError(
            f"{folder} already holds a sweep: continue it with --resume, or give another name in its spec"
        )
    now = sweep.model_dump(mode="json")
    saved = before.get("sweep") or {}
    if any(saved.get(name) != now[name] for name in now if name not in MAY_DIFFER):
        raise no_sweep(folder)
    rows = [Trial.from_row(row) for row in before.get("trials") or []]
    return {row.number - 1: row for row in rows if row.status == PRUNED}


def _write(sweep: SweepSpec, folder: Path, rows: dict[int, Trial]) -> None:
    trials = ranked(list(rows.values()), maximize=sweep.maximize)
    best = trials[0].folder if trials and trials[0].value is not None else None
    folder.mkdir(parents=True, exist_ok=True)
    document = {"sweep": sweep.model_dump(mode="json"), "best": best}
    write_json_atomic(folder / SWEEP, {**document, "trials": [row.to_row() for row in trials]})


class Watcher(tune.Callback):
    """Records each trial that ends, and passes a Ctrl-C on to those that train."""

    def __init__(
        self,
        sweep: SweepSpec,
        specs: list[JobSpec],
        folder: Path,
        rows: dict[int, Trial],
        show: Callable[[str], None],
        interrupted: threading.Event,
        stop: Path,
    ) -> None:
        self._sweep, self._specs, self._folder = sweep, specs, folder
        self.rows, self._show, self._stop = rows, show, stop
        self._interrupted, self._drawn = interrupted, sweep.drawn()
        self._training: set[int] = set()
        self.stopper = _WhenAllSaved(self)

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; our state is in the folders of the jobs."""
        return {}

    def trials(self) -> list[Trial]:
        """All of them; those without a row have not started."""
        return [self.rows.get(number) or self._row(number, {}, pruned=False) for number in self._numbers]

    @property
    def _numbers(self) -> range:
        return range(len(self._specs))

    def saved(self) -> bool:
        """Whether a Ctrl-C came, and every job has saved its state."""
        if self._interrupted.is_set() and not self._stop.exists():
            self._show("saving the state of the trials")
            with suppress(OSError):
                self._stop.touch()
        return self._interrupted.is_set() and not self._training

    def on_trial_start(self, **info: Any) -> None:
        """Called by Tune."""
        number = info["trial"].config["number"]
        self._training.add(number)
        if not self._stop.exists():
            values = ", ".join(f"{name}={value}" for name, value in self._drawn[number].items())
            self._show(f"trial {number + 1} of {len(self._specs)}: {values}")

    def on_trial_complete(self, **info: Any) -> None:
        """Called by Tune, also where it ends a trial."""
        number, last = info["trial"].config["number"], info["trial"].last_result or {}
        if number not in self._training:
            return
        self._training.discard(number)
        row = self._row(number, last, pruned=not last.get("ended") and not self._stop.exists())
        self.rows[number] = row
        _write(self._sweep, self._folder, self.rows)
        value = "" if row.value is None else f", {self._sweep.metric_name} {row.value:.4g}"
        incidents = f", {row.incidents} incidents" if row.incidents else ""
        why = f": {row.error}" if row.error else ""
        self._show(f"trial {number + 1} {row.status}{value}{incidents}{why}")

    def on_trial_error(self, **info: Any) -> None:
        """Called by Tune where the trial's process died."""
        number, last = info["trial"].config["number"], info["trial"].last_result or {}
        self._training.discard(number)
        self.rows[number] = self._row(number, {**last, "error": "its process died"}, pruned=False)
        self._show(f"trial {number + 1} failed: its process died")

    def _row(self, number: int, last: dict[str, Any], *, pruned: bool) -> Trial:
        folder = self._specs[number].job_dir
        return trial_of(number + 1, folder, self._drawn[number], last, pruned=pruned)


class _WhenAllSaved(tune.Stopper):
    """Ends the sweep after a Ctrl-C, once no job trains."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, *_: Any) -> bool:
        """No trial alone."""
        return False

    def stop_all(self) -> bool:
        """Asked at each turn of Tune's loop."""
        return self._watcher.saved()
