"""Runs one job from this process: Ray, the hub, Ray Train in a thread, the live view, the result."""

from __future__ import annotations

import itertools
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from guard.trackers import Trackers
from jobs.checkpoints import checkpoint_name, newest_step
from jobs.checkpoints.data_match import INSIST, other_data
from jobs.checkpoints.listing import manifests
from jobs.cluster.failures import log_failure
from jobs.cluster.fit import REFUSED, FitThread
from jobs.cluster.head_watch import HeadDied, HeadWatch
from jobs.cluster.session import ClusterInfo, check_resources, ray_session
from jobs.errors import JobError
from jobs.notify import Notice, Notifier
from jobs.notify.notice import of_status
from jobs.observability.console import LiveView
from jobs.observability.driver_events import DriverEvents, Tell, interrupts, metrics_at
from jobs.observability.hub import ensure_hub
from jobs.placement.plan import worker_resources
from jobs.ray_internals.core import ray_messages_to
from jobs.report import write_report
from jobs.report.summary import Summary, figures_of_rows, headline
from jobs.run_dir.jsonl import read_json, write_json_atomic
from jobs.run_dir.open_storage import open_storage
from jobs.run_dir.paths import REPORT, RunDir
from jobs.run_dir.reader import RunReader
from jobs.run_dir.result import complete
from jobs.spec.job_spec import JobSpec
from jobs.spec.masking import masked_spec
from jobs.spec.notify import NoticeKind
from jobs.training.data_agreement import identity
from jobs.training.optim import check_by_path
from jobs.workloads import Workload, load_workload

logger = logging.getLogger(__name__)

POLL_S = 0.25
HUB_TIMEOUT_S = 5.0


def run_job(
    spec: JobSpec,
    *,
    console: Console,
    address: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "gradguard train SPEC",
    closed: threading.Event | None = None,
) -> dict[str, Any]:
    """Trains the job and writes its result and report.

    Args:
        spec: the job; relative folders are relative to the current directory.
        console: where the live view goes.
        address: of a Ray cluster; default: the one of this Ray job, else an embedded one.
        resume: continue from the newest checkpoint of an unfinished job of this name.
        overwrite: set an existing job of this name aside and start from the beginning.
        command: how the user would start this job again, without flags.
        closed: set when nobody reads the console any more; the job then saves its state and ends.

    Returns:
        The contents of result.json.

    Raises:
        JobError, ClusterError, SpecError: the job cannot run; the text is one line with the reason.
    """
    spec = spec.absolute()
    folder, workload = RunDir(spec.job_dir), None
    if address is None and "RAY_ADDRESS" not in os.environ:
        workload = load_workload(spec)
        # What is wrong with the data, the optimizer or the schedule shows before Ray starts.
        check_by_path(spec, spec.total_steps(workload.n_train))
    started = time.monotonic()
    with folder.locked(), Notifier(spec.notify) as notices:
        if workload is not None and not overwrite and (resume or spec.resume == "auto"):
            _refuse_other_data(spec, folder, workload)
        continues = folder.prepare(spec, resume=resume, overwrite=overwrite)
        if resume and not continues:
            text = f"there is no job in {folder.path} to continue: it starts from the beginning"
            console.print(text, markup=False, soft_wrap=True)
        tell = partial(_tell, notices, spec, folder)
        try:
            outcome = _train(spec, folder, address, console, closed or threading.Event(), tell)
            if outcome["status"] == REFUSED:
                raise JobError(outcome["error"])
        except Exception as error:
            tell("failed", f"{spec.name} could not run: {error}", figures={"error": error})
            raise
        result = complete(outcome, spec, time.monotonic() - started, command)
        _write(folder, result)
        track_report(spec, folder, result["status"])
        _tell_the_end(notices, tell, folder, result)
    return result


def track_report(spec: JobSpec, folder: RunDir, status: str) -> None:
    """Gives the report, which is written when the workers have ended, to trackers that want artefacts."""
    wanted = [config for config in spec.track if config.artefacts]
    if not wanted or not folder.report.exists():
        return
    settings = masked_spec(spec.model_dump(mode="json"))
    trackers = Trackers(wanted, name=spec.name, spec=settings, folder=spec.job_dir / "track", resume=True)
    trackers.artefact(folder.report)
    trackers.close(status)


def _tell(
    notices: Notifier,
    spec: JobSpec,
    folder: RunDir,
    event: NoticeKind,
    sentence: str,
    step: int = 0,
    figures: Mapping[str, Any] | None = None,
) -> None:
    link, files = str(folder.path / REPORT), RunReader(folder.path)
    notice = Notice(spec.name, event, sentence, step, link, files=files)
    notices.emit(notice.with_figures(figures or {}))


def _tell_the_end(notices: Notifier, tell: Tell, folder: RunDir, result: dict[str, Any]) -> None:
    """Tells how the job ended, and adds to its result how many notices were sent, failed and dropped."""
    why = f" {result['error']}" if result.get("error") else ""
    sentence = f"{result['job']}: {headline(Summary.from_row(result))}{why}"
    tell(of_status(result["status"]), sentence, int(result["steps"]), result)
    notices.close()
    if any(notices.counts.values()):
        result["notices"] = notices.counts
        with suppress(OSError):
            write_json_atomic(folder.result, result)


def _refuse_other_data(spec: JobSpec, folder: RunDir, workload: Workload) -> None:
    """What the workers would find too, before Ray starts: the data changed since the checkpoint."""
    place, finished = spec.checkpoint_place, (read_json(folder.result) or {}).get("status") == "succeeded"
    if finished or spec.data.on_changed == "continue" or not isinstance(place, Path) or not place.is_dir():
        return
    good = [manifest for manifest in manifests(open_storage(place))[0] if manifest.health == "good"]
    if good and (what := other_data(good[-1].data, identity(workload), good[-1].step)):
        raise JobError(f"{what}; {INSIST}")


def _train(
    spec: JobSpec,
    folder: RunDir,
    address: str | None,
    console: Console,
    closed: threading.Event,
    tell: Tell,
) -> dict[str, Any]:
    """Trains on a cluster. An embedded one whose head dies is replaced, ``scale.max_failures`` times."""
    for deaths in itertools.count(1):
        embedded = False
        try:
            with ray_messages_to(partial(_append, folder.log)), _cluster(spec, address) as cluster:
                embedded = cluster.embedded
                return _follow(spec, folder, cluster, console, closed, tell)
        except HeadDied as death:
            log_failure(folder.log, death)
            if not embedded or deaths > spec.scale.max_failures:
                failed = {"status": "failed", "error": str(death), "cause": "cluster"}
                return {**_last_kept(spec, folder), **failed}
            console.print(f"{death}: starting Ray again", style="red", markup=False)
    raise AssertionError("unreachable: the loop returns")


def _append(log: Path, lines: list[str]) -> None:
    """Ray's own messages fill a screen; what they mean is shown in one line of ours."""
    with suppress(OSError), log.open("a", encoding="utf-8") as file:  # a full disk must not end the job
        file.writelines(f"ray: {line}\n" for line in lines)


def _cluster(spec: JobSpec, address: str | None) -> AbstractContextManager[ClusterInfo]:
    cpus = max(math.ceil(spec.scale.workers * spec.scale.cpus_per_worker), os.cpu_count() or 1)
    timeout = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(spec.scale.stall_timeout_s)}
    start_s = spec.scale.start_timeout_s
    return ray_session(address, cpus, train_defaults=timeout, start_timeout_s=start_s)


METRICS_HOST_VARIABLE = "GRADGUARD_METRICS_HOST"


def metrics_host(spec: JobSpec) -> str:
    """Where the hub listens: as the spec or else the platform sets it, by default on loopback."""
    return spec.metrics.host or os.environ.get(METRICS_HOST_VARIABLE) or "127.0.0.1"


def _follow(
    spec: JobSpec,
    folder: RunDir,
    cluster: ClusterInfo,
    console: Console,
    closed: threading.Event,
    tell: Tell,
) -> dict[str, Any]:
    """Starts the training, shows it until it ends, and turns Ctrl-C into a request to stop."""
    use_gpu, fewest = _use_gpu(spec, cluster), spec.scale.fewest_workers
    each = worker_resources(spec.scale, use_gpu=use_gpu)
    check_resources({name: fewest * amount for name, amount in each.items()}, workers=fewest)
    hub = ensure_hub(spec.metrics.port, metrics_host(spec))
    _notify_hub(lambda: hub.begin.remote(spec.name))
    scratch = folder.path / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)
    thread = FitThread(spec, hub, use_gpu=use_gpu, embedded=cluster.embedded, scratch=scratch)
    with LiveView(console) as view, interrupts() as interrupted:
        events = DriverEvents(hub, spec.name, view, tell, grace_s=spec.scale.stop_grace_s)
        where = "an embedded Ray" if cluster.embedded else f"the Ray cluster at {cluster.address}"
        text = f"starting {spec.scale.workers_text} on {where}; metrics at {metrics_at(hub)}"
        events.show("info", text)
        tell("started", f"{spec.name}: {text}.")
        try:
            with thread.running():
                _wait(thread, events, HeadWatch(cluster), (interrupted, closed))
        except HeadDied as death:
            if not (interrupted.is_set() or closed.is_set()):
                raise
            log_failure(folder.log, death)  # the job was stopping: it does not start again
            return _last_kept(spec, folder)
    outcome = thread.outcome() or {}
    if "steps" not in outcome:  # it did not end normally
        outcome = {**_last_kept(spec, folder), **outcome}
    _notify_hub(lambda: hub.end.remote(spec.name, outcome["status"]))
    shutil.rmtree(scratch, ignore_errors=True)
    return outcome


def _wait(thread: FitThread, events: DriverEvents, head: HeadWatch, stops: Sequence[threading.Event]) -> None:
    """Until the training ends, or has not stopped within its grace period."""
    while not (thread.wait(POLL_S) or events.is_out_of_time()):
        head.check()
        events.poll()
        while not thread.messages.empty():
            events.show("error", thread.messages.get())
        if any(stop.is_set() for stop in stops):
            events.stop()
    events.poll()


def _last_kept(spec: JobSpec, folder: RunDir) -> dict[str, Any]:
    """The result of a job that did not end normally, from its last checkpoint and its rows."""
    step = newest_step(spec.checkpoint_place)
    kept = None if step is None else checkpoint_name(spec.checkpoint_place, step)
    result = {"status": "stopped", "job": spec.name, "error": None, "steps": step or 0, "checkpoint": kept}
    return {**result, **figures_of_rows(folder.path)}


def _notify_hub(message: Callable[[], Any]) -> None:
    """Sends the hub a message and waits until it has arrived; a hub that is down is only logged."""
    try:
        ray.get(message(), timeout=HUB_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        logger.warning("the metrics hub does not answer: %s", error)


def _use_gpu(spec: JobSpec, cluster: ClusterInfo) -> bool:
    if spec.scale.device == "auto":
        return cluster.gpus >= spec.scale.fewest_workers
    return spec.scale.device == "gpu"


def _write(folder: RunDir, result: dict[str, Any]) -> None:
    try:
        write_json_atomic(folder.result, result)
        write_report(folder.path)
    except Exception as error:  # noqa: BLE001 - the training is over: a failure here must not fail it
        logger.warning("cannot write the result or the report in %s: %s", folder.path, error)
