"""``train.max_hours`` and ``train.checkpoint_every_minutes``, on a clock of a minute a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from guard import FaultInjector, GradientGuard
from jobs.checkpoints import CheckpointManager, Policy
from jobs.data.cursor import DataCursor
from jobs.observability.progress import Progress
from jobs.placement.hardware_faults import HardwareFaults
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec
from jobs.training.loop import train_steps
from jobs.training.optim import build_optimizer, build_schedule
from jobs.training.regularize import Regularizer
from jobs.training.run import Data, Model, Run, World
from jobs.training.stepper import Stepper
from jobs.training.watchdog import Watchdog

STEPS = 20
CPU = torch.device("cpu")


class Minutes:
    """A line through points; each batch takes a minute, evaluations take no time."""

    n_train = 80

    def __init__(self) -> None:
        self.now = 1000.0
        self.points = torch.from_numpy(np.random.default_rng(0).normal(size=(80, 2))).float()

    def train_batch(self, ids: Any, epoch: int, device: torch.device) -> torch.Tensor:
        self.now += 60.0
        return self.points[ids.tolist()]

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (model(batch[:, :1]) - batch[:, 1:]).square().mean()

    def evaluate(self, model: nn.Module, *_: Any) -> dict[str, float]:
        return {"n": 1.0}

    def metrics(self, sums: Any) -> dict[str, float]:
        return dict(sums)


@contextmanager
def run_of(folder: Path, rank: int = 0, **train: Any) -> Iterator[Run]:
    train = {"max_steps": STEPS, **train}
    spec = JobSpec.from_dict({"data": {"batch_size": 4}, "optimizer": {"lr": 0.01}, "train": train})
    torch.manual_seed(0)
    workload, model = Minutes(), nn.Linear(1, 1)
    optimizer = build_optimizer(spec.optimizer, model.parameters())
    schedule = build_schedule(spec.schedule, optimizer, STEPS)
    cursor = DataCursor(workload.n_train, 4, 0)
    guard = GradientGuard(model, optimizer, spec.guard, scheduler=schedule, data=cursor)
    stepper = Stepper(
        workload,
        model,
        optimizer,
        guard,
        Regularizer(spec.regularize, model, total_steps=STEPS, seed=0),
        FaultInjector((), model=model, optimizer=optimizer),
        CPU,
    )
    clock = lambda: workload.now  # noqa: E731
    progress = Progress(spec, RunDir(folder), None, guard, STEPS, rank=rank, clock=clock)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "cursor": cursor, "guard": guard}
    yield Run(
        spec,
        World(0, 1, CPU, ["node"], ["place"]),
        Data(workload, cursor, STEPS),
        Model(model, optimizer, schedule, None, None),
        guard,
        stepper,
        progress,
        HardwareFaults(["node"], 3),
        CheckpointManager(folder / "checkpoints", parts, policy=Policy(keep=9)),
        SimpleNamespace(preempted=False, requested=lambda: False),  # type: ignore[arg-type]
        Watchdog(60),
    )
    if progress._rows is not None:
        progress._rows.close()


def test_a_run_ends_after_the_step_in_which_its_hours_are_over(tmp_path: Path) -> None:
    with run_of(tmp_path, max_hours=0.2) as run:
        assert not train_steps(run), "it stopped before its last step"
    assert run.guard.steps == 13, "twelve minutes have passed when the thirteenth batch is due"
    assert "train.max_hours: 0.2 hours are over, saving the state" in str(run.progress._events)


@pytest.mark.parametrize("train", [{}, {"max_hours": 0.4}])
def test_a_run_without_a_limit_or_within_it_takes_all_its_steps(tmp_path: Path, train: dict) -> None:
    with run_of(tmp_path, **train) as run:
        assert train_steps(run)
    assert run.guard.steps == STEPS


def test_the_hours_are_those_of_the_first_rank(tmp_path: Path) -> None:
    with run_of(tmp_path, rank=1, max_hours=0.2, checkpoint_every_minutes=5) as run:
        assert train_steps(run)
    run.checkpoints.finish()
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_checkpoints_are_written_by_the_clock(tmp_path: Path) -> None:
    with run_of(tmp_path, checkpoint_every_minutes=5) as run:
        assert train_steps(run)
    run.checkpoints.finish()
    saved = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step-*"))
    assert saved == [6, 11, 16]
