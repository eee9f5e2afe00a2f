"""One training job, from the first batch to the result: the loop that runs on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guard import GuardHalt, StepReport
from jobs.checkpoints import CheckpointManager
from jobs.data.cursor import shard
from jobs.layout.unused import name_parameters
from jobs.placement.hardware_faults import FAULTY, PREEMPTED, display_names, fits_elsewhere, preempted_nodes
from jobs.run_dir.paths import RunDir
from jobs.run_dir.result import MOVING
from jobs.spec.job_spec import JobSpec
from jobs.training.evaluate import evaluate, metrics_of
from jobs.training.run import Run
from jobs.training.samples import write_samples
from jobs.training.setup import build
from jobs.training.watchdog import Watchdog


def train(spec: JobSpec, hub: Any, watchdog: Watchdog) -> dict[str, Any]:
    """Trains on this rank until the end, a stop, a move or a halt, and returns the job's result."""
    run = build(spec, hub, watchdog)
    run.progress.enter("training")
    status, error = "succeeded", None
    try:
        if not (train_steps(run) and ensure_evaluated(run)):
            move_off_preempted_nodes(run)
            status = MOVING if run.moving else "stopped"
    except GuardHalt as halt:
        status, error = "halted", str(halt)
        run.checkpoints.discard_after(run.guard.steps)
        run.progress.event("error", error)
    except Exception as failure:
        name_parameters(failure, run.model.bare)
        run.guard.report_failure(failure)
        run.progress.trackers.close("failed")
        raise
    finally:
        run.close()
    save(run, closing=True)
    samples = write_samples(run) if status == "succeeded" else None
    run.progress.enter("finished")
    close_trackers(run, status)
    return {**result(run, status, error), "samples": samples}


def close_trackers(run: Run, status: str) -> None:
    """Gives them the files of the job. Only rank 0 has any."""
    run.watchdog.pause()
    folder = RunDir(run.spec.job_dir)
    newest = run.checkpoints.latest() if run.spec.track and run.world.rank == 0 else None
    for path in (folder.spec, folder.incidents, *([folder.path / newest] if newest else ())):
        if path.exists():  # checkpoints may be at a URL
            run.progress.trackers.artefact(path)
    run.progress.trackers.close("stopped" if status == MOVING else status)


def train_steps(run: Run) -> bool:
    """Steps until the last one; False if a stop was requested before, or the job moves to other nodes."""
    move_off_bad_nodes(run)
    if run.moving:
        return False
    if due(run.guard.steps, run.eval_every) and not ensure_evaluated(run):
        return False  # the run before this one was stopped between a step and its evaluation
    if run.progress.early_stopping.over:
        return True
    for report in steps(run):
        record(run, report)
        if not report.stop:
            move_off_bad_nodes(run)
        if report.stop or run.moving:
            settle(run)
            return False
        if report.applied and due(report.step, run.eval_every) and not ensure_evaluated(run):
            return False
        if run.progress.early_stopping.over:
            run.progress.event("info", run.progress.early_stopping.line())
            return True
        healthy = report.applied and report.verdict.healthy
        if healthy and (run.checkpoints.requested or due(report.step, run.spec.train.checkpoint_every_steps)):
            save(run)
    return True


def steps(run: Run) -> Iterator[StepReport]:
    """The report of each attempt until the last step is final; a deferred guard reports one attempt later."""
    while run.guard.steps < run.data.total_steps:
        report = train_step(run)
        if not report.pending:
            yield report
        if run.guard.steps >= run.data.total_steps and (late := run.guard.flush()) is not None:
            yield late


def train_step(run: Run) -> StepReport:
    """One batch: forward, backward, and the guard's decision."""
    run.watchdog.beat()
    batch = run.data.cursor.next_batch()
    run.stepper.faults.begin(run.guard.steps)
    pass_requests_on(run)
    ids = shard(batch.ids, run.world.data_rank, run.world.data_size)
    report = run.stepper.step(ids, batch.epoch)
    if run.profiler is not None:
        run.profiler.step()
    return report


def pass_requests_on(run: Run) -> None:
    """Puts what this rank was asked for into its agreed row, so that all ranks act on it after one step."""
    if run.progress.stop_requested() or run.stop.preempted or run.progress.out_of_time():
        run.guard.request_stop()
    if run.progress.take_checkpoint_request() or run.progress.take_checkpoint_due():
        run.guard.request_checkpoint()


def record(run: Run, report: StepReport) -> None:
    """Records the outcome of an attempt, and what follows from it for checkpoints and nodes."""
    run.progress.step(report, data_seconds=run.stepper.data_time.take())
    update_checkpoint_health(run.checkpoints, report)
    if report.checkpoint:
        run.checkpoints.request()
    if report.incident is not None:
        run.hardware.add(report.incident.faulty_ranks)


def move_off_bad_nodes(run: Run) -> None:
    """Leaves nodes with too many hardware faults, if the others have room. Every rank has the same counts."""
    bad = run.hardware.bad
    if not bad:
        return
    if fits_elsewhere(run.spec.scale, bad, use_gpu=run.world.device.type == "cuda"):
        run.hardware.leave(bad, FAULTY)
        return
    run.hardware.keep(bad)
    names = display_names(bad)
    run.progress.event("error", f"{names} {FAULTY}, and no other has room: training continues there")


def move_off_preempted_nodes(run: Run) -> None:
    """Leaves preempted nodes, if nothing else stops the job. Every rank stops after the same step."""
    if run.moving:
        return
    asked = run.stop.asked or run.progress.stop_requested()
    preempted = preempted_nodes(run.spec.scale, asked, use_gpu=run.world.device.type == "cuda")
    run.hardware.leave(preempted, PREEMPTED)


def settle(run: Run) -> None:
    """Waits for the step that a deferred guard has under way: what follows needs a final state."""
    if (late := run.guard.flush()) is not None:
        record(run, late)


def ensure_evaluated(run: Run) -> bool:
    """Evaluates unless this step's metrics are known; False if a stop was requested meanwhile."""
    settle(run)
    if run.progress.evaluated_step == run.guard.steps:
        return True
    run.watchdog.beat()
    run.progress.enter("evaluating")
    sums = evaluate(run)
    if sums is not None:
        run.progress.gpu.exchange(run.world.size)
        metrics = metrics_of(run.data.workload, sums)
        confusion = getattr(run.data.workload, "confusion", lambda _: None)(sums)
        run.progress.evaluated(metrics, run.guard.steps / run.data.steps_per_epoch, confusion)
    run.progress.enter("training")
    return sums is not None


def update_checkpoint_health(checkpoints: CheckpointManager, report: StepReport) -> None:
    """What this step means for the checkpoints before it: confirmed, suspect, or rolled back."""
    if report.rolled_back_to is not None:
        checkpoints.discard_after(report.rolled_back_to)
    elif not report.verdict.healthy:
        checkpoints.mark_suspect()
    elif report.applied:
        checkpoints.clean_step()


def save(run: Run, *, closing: bool = False) -> None:
    """A checkpoint of the present state. Training waits for the copy only, at its end for the disk."""
    settle(run)
    run.watchdog.pause()
    run.progress.enter("saving")
    if not closing:
        run.guard.snapshot()
    run.checkpoints.save(run.guard.steps, closing=closing)
    run.progress.enter("training")


def due(step: int, every: int) -> bool:
    """Whether something that happens every ``every`` steps happens after this one."""
    return step > 0 and step % every == 0


def result(run: Run, status: str, error: str | None) -> dict[str, Any]:
    """The loop's part of result.json."""
    return {
        "status": status,
        "job": run.spec.name,
        "dataset": getattr(run.data.workload, "dataset", None),
        "steps": run.guard.steps,
        "attempts": run.guard.attempts,
        "epochs": run.guard.steps / run.data.steps_per_epoch,
        "metrics": run.progress.evaluation,
        **confusion_of(run),
        **run.progress.totals(),
        "checkpoint": run.checkpoints.latest(),
        "world_size": run.world.size,
        "gpu": run.progress.gpu.summary(),
        "error": error,
        "tracker_failures": run.progress.trackers.failures,
        "avoid": run.hardware.nodes_to_leave,
        "why": run.hardware.reason,
    }


def confusion_of(run: Run) -> dict[str, Any]:
    """The confusion matrix of the last evaluation, with the names of its rows and columns."""
    if run.progress.confusion is None:
        return {}
    names = getattr(run.data.workload, "classes", None) or range(len(run.progress.confusion))
    return {"confusion": {"classes": [str(name) for name in names], "rows": run.progress.confusion}}
