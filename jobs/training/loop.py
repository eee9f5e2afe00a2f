"""One training job, from the first batch to the result: the loop that runs on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guard import GuardHalt, StepReport
from jobs.checkpoints import CheckpointManager
from jobs.data.cursor import shard
from jobs.placement.hardware_faults import ERRED, TAKEN_AWAY, given_up_nodes, named, room_elsewhere
from jobs.run_dir.result import MOVING
from jobs.spec.job_spec import JobSpec
from jobs.training.evaluate import evaluate
from jobs.training.samples import write_samples
from jobs.training.setup import Run, build
from jobs.training.watchdog import Watchdog


def train(spec: JobSpec, hub: Any, pulse: Watchdog) -> dict[str, Any]:
    """Trains on this rank until the end, a stop, a move or a halt, and returns the job's result."""
    run = build(spec, hub, pulse)
    run.progress.enter("training")
    status, error = "succeeded", None
    try:
        if not (train_steps(run) and evaluated(run)):
            status = MOVING if run.hardware.leaving or gives_way(run) else "stopped"
    except GuardHalt as halt:
        status, error = "halted", str(halt)
        run.checkpoints.discard_after(run.guard.steps)
        run.progress.event("error", error)
    except Exception as failure:
        run.guard.report_failure(failure)
        raise
    finally:
        run.close()
    save(run, closing=True)
    samples = write_samples(run) if status == "succeeded" else None
    run.progress.enter("finished")
    return {**result(run, status, error), "samples": samples}


def train_steps(run: Run) -> bool:
    """Steps until the last one; false if somebody asked to stop before, or a node is to be left."""
    if leaves(run):
        return False
    if due(run.guard.steps, run.eval_every) and not evaluated(run):
        return False  # the run before this one was stopped between a step and its evaluation
    for report in steps(run):
        note(run, report)
        if report.stop or leaves(run):
            settle(run)
            return False
        if report.applied and due(report.step, run.eval_every) and not evaluated(run):
            return False
        healthy = report.applied and report.verdict.kind == "ok"
        if healthy and due(report.step, run.spec.train.checkpoint_every_steps):
            save(run)
    return True


def steps(run: Run) -> Iterator[StepReport]:
    """What became of each attempt until the last step stands; a deferred guard tells it one attempt later."""
    while run.guard.steps < run.total_steps:
        report = train_step(run)
        if not report.pending:
            yield report
        if run.guard.steps >= run.total_steps and (late := run.guard.flush()) is not None:
            yield late


def train_step(run: Run) -> StepReport:
    """One batch: forward, backward, and what the guard makes of it."""
    run.pulse.beat()
    batch = run.cursor.next_batch()
    run.faults.begin(run.guard.steps)
    if run.progress.stop_requested() or run.stop.draining:
        run.guard.request_stop()
    ids = shard(batch.ids, run.rank, run.world_size)
    return run.stepper.step(ids, batch.epoch)


def note(run: Run, report: StepReport) -> None:
    """Records what became of an attempt, and what it says of the checkpoints before it."""
    run.progress.step(report)
    judge(run.checkpoints, report)
    if report.incident is not None:
        run.hardware.note(report.incident.faulty_ranks)


def leaves(run: Run) -> bool:
    """Whether a node has erred too often and the job goes on elsewhere; all ranks come here alike."""
    bad = run.hardware.bad
    if not bad:
        return False
    if room_elsewhere(run.spec.scale, bad, use_gpu=run.device.type == "cuda"):
        run.hardware.leave(bad, ERRED)
        return True
    run.hardware.keep(bad)
    run.progress.event("error", f"{named(bad)} {ERRED}, and no other has room: training goes on there")
    return False


def gives_way(run: Run) -> bool:
    """Whether a job that stops does so only for nodes that are taken away, and goes on elsewhere."""
    asked = run.stop.asked or run.progress.stop_requested()
    going = given_up_nodes(run.spec.scale, asked, use_gpu=run.device.type == "cuda")
    run.hardware.leave(going, TAKEN_AWAY)
    return bool(run.hardware.leaving)


def settle(run: Run) -> None:
    """Waits for the step that a deferred guard has under way: what comes next needs a state that stands."""
    if (late := run.guard.flush()) is not None:
        note(run, late)


def evaluated(run: Run) -> bool:
    """Evaluates unless this step's metrics are there already; false if somebody asked to stop meanwhile."""
    settle(run)
    if run.progress.evaluated_step == run.guard.steps:
        return True
    run.pulse.beat()
    run.progress.enter("evaluating")
    sums = evaluate(run)
    if sums is not None:
        run.progress.evaluated(run.workload.metrics(sums), run.guard.steps / run.steps_per_epoch)
    run.progress.enter("training")
    return sums is not None


def judge(checkpoints: CheckpointManager, report: StepReport) -> None:
    """What this step says of the checkpoints before it: clean, in doubt, or undone."""
    if report.rolled_back_to is not None:
        checkpoints.discard_after(report.rolled_back_to)
    elif report.verdict.kind != "ok":
        checkpoints.mark_suspect()
    elif report.applied:
        checkpoints.clean_step()


def save(run: Run, *, closing: bool = False) -> None:
    """A checkpoint of the present state; training waits only for a copy of it, at its end for the disk."""
    settle(run)
    run.pulse.rest()
    run.progress.enter("saving")
    if not closing:
        run.guard.snapshot()
    run.checkpoints.save(run.guard.steps, closing=closing)
    run.progress.enter("training")


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return step > 0 and step % every == 0


def result(run: Run, status: str, error: str | None) -> dict[str, Any]:
    """What the loop knows of result.json."""
    return {
        "status": status,
        "job": run.spec.name,
        "steps": run.guard.steps,
        "attempts": run.guard.attempts,
        "epochs": run.guard.steps / run.steps_per_epoch,
        "metrics": run.progress.evaluation,
        **run.progress.totals(),
        "checkpoint": run.checkpoints.latest(),
        "world_size": run.world_size,
        "error": error,
        "avoid": run.hardware.leaving,
        "why": run.hardware.why,
    }
