"""One training job, from the first batch to the result: the loop that runs on every rank.

``python -m jobs.train SPEC`` is the entrypoint for ``ray job submit``.
"""

from __future__ import annotations

import sys
from typing import Any

from guard import GuardHalt, StepReport
from jobs.data.cursor import shard
from jobs.evaluate import evaluate
from jobs.setup import Run, build
from jobs.spec import JobSpec


def train(spec: JobSpec, hub: Any) -> dict[str, Any]:
    """Trains on this rank until the end, a stop, or a halt, and returns the job's result."""
    run = build(spec, hub)
    run.progress.enter("training")
    status, error = "succeeded", None
    try:
        if not (train_steps(run) and evaluated(run)):
            status = "stopped"
    except GuardHalt as halt:
        status, error = "halted", str(halt)
        run.checkpoints.forget_after(run.guard.steps)
        run.progress.event("error", error)
    save(run)
    run.progress.enter("finished")
    return result(run, status, error)


def train_steps(run: Run) -> bool:
    """Steps until the last one; false if somebody asked to stop before."""
    if due(run.guard.steps, run.eval_every) and not evaluated(run):
        return False  # the run before this one was stopped between a step and its evaluation
    while run.guard.steps < run.total_steps:
        report = train_step(run)
        run.progress.step(report)
        if report.rolled_back_to is not None:
            run.checkpoints.forget_after(report.rolled_back_to)
        if report.stop:
            return False
        if report.applied and due(report.step, run.eval_every) and not evaluated(run):
            return False
        healthy = report.applied and report.verdict.kind == "ok"
        if healthy and due(report.step, run.spec.train.checkpoint_every_steps):
            save(run)
    return True


def train_step(run: Run) -> StepReport:
    """One batch: forward, backward, and what the guard makes of it."""
    batch = run.cursor.next_batch()
    run.faults.begin(run.guard.steps)
    if run.progress.stop_requested() or run.stop.draining:
        run.guard.request_stop()
    ids = shard(batch.ids, run.rank, run.world_size)
    inputs = run.faults.batch(run.workload.train_batch(ids, batch.epoch, run.device))
    run.optimizer.zero_grad()
    loss = run.faults.loss(run.workload.loss(run.model, inputs))
    run.guard.backward(loss)
    return run.guard.step()


def evaluated(run: Run) -> bool:
    """Evaluates unless this step's metrics are there already; false if somebody asked to stop meanwhile."""
    if run.progress.evaluated_step == run.guard.steps:
        return True
    run.progress.enter("evaluating")
    sums = evaluate(run)
    if sums is not None:
        run.progress.evaluated(run.workload.metrics(sums), run.guard.steps / run.steps_per_epoch)
    run.progress.enter("training")
    return sums is not None


def save(run: Run) -> None:
    """A checkpoint of the present state. A disk that refuses does not end the training."""
    run.progress.enter("saving")
    if problem := run.checkpoints.save(run.guard.steps):
        run.progress.event("warning", f"no checkpoint of step {run.guard.steps}: {problem}; training goes on")
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
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the spec that the command line names; returns the exit code."""
    from jobs.entrypoint import main as run_entrypoint

    return run_entrypoint(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
