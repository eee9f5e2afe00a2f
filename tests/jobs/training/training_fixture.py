"""One rank's training without Ray: all parts of a job's loop, put together as the job does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guard import FaultInjector, GradientGuard, GuardMetrics, StepReport
from jobs.checkpoints import CheckpointManager
from jobs.data.cursor import DataCursor
from jobs.init import build_initialized
from jobs.spec.job_spec import JobSpec
from jobs.training.dropout import set_randomness
from jobs.training.optim import build_optimizer, build_schedule, tables_of
from jobs.training.regularize import Regularizer
from jobs.training.stepper import Stepper, make_average, make_scaler
from jobs.workloads.load import make_cursor

CPU = torch.device("cpu")


@dataclass
class Training:
    """``parts`` is what a checkpoint holds; the moving average and the scaler only where there is one."""

    parts: dict[str, Any]
    stepper: Stepper
    cursor: DataCursor

    def train(self, steps: int) -> list[StepReport]:
        """Attempts until this many steps are applied."""
        reports = []
        while self.stepper.guard.steps < steps:
            batch = self.cursor.next_batch()
            reports.append(self.stepper.step(batch.ids, batch.epoch))
        return reports

    def keep(self, folder: Path) -> CheckpointManager:
        """Writes a checkpoint of the present state; call ``settle`` on it once clean steps have followed."""
        self.stepper.guard.snapshot()
        kept = CheckpointManager(folder, self.parts)
        kept.save(self.stepper.guard.steps)
        return kept


def settle(kept: CheckpointManager) -> None:
    """Two clean steps have followed, and the checkpoint is on the disk."""
    kept.clean_step()
    kept.clean_step()
    kept.finish()


def begin(workload: Any, spec: JobSpec, steps: int) -> Training:
    """A new training of ``steps`` steps."""
    torch.manual_seed(spec.seed)
    model = build_initialized(spec, workload)
    set_randomness(model, spec.regularize)
    optimizer = build_optimizer(spec.optimizer, model.parameters(), decay_on="auto", tables=tables_of(model))
    schedule = build_schedule(spec.schedule, optimizer, steps)
    scaler = make_scaler(CPU, spec.train.precision)
    average = make_average(model, spec.train.ema_decay)
    cursor = make_cursor(workload, spec)
    guard = GradientGuard(
        model,
        optimizer,
        spec.guard,
        scheduler=schedule,
        scaler=scaler,
        data=cursor,
        ema=average,
        metrics=GuardMetrics(),
    )
    stepper = Stepper(
        workload,
        model,
        optimizer,
        guard,
        Regularizer(spec.regularize, model, total_steps=steps, seed=spec.seed),
        FaultInjector((), model=model, optimizer=optimizer),
        CPU,
        spec.train.precision,
        spec.train.micro_batches,
        scaler,
        average,
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "average": average}
    parts |= {"scaler": scaler, "cursor": cursor, "guard": guard}
    return Training({name: part for name, part in parts.items() if part is not None}, stepper, cursor)


def assert_same_weights(one: Training, other: Training) -> None:
    """To the bit, the moving average's too."""
    for name in {"model", "average"} & one.parts.keys():
        ours, theirs = one.parts[name].state_dict(), other.parts[name].state_dict()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name
