"""One run: a task, a case, a method, a seed, on this rank of two."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from guard import FaultConfig, FaultInjector, GradientGuard, GuardConfig, GuardHalt
from jobs.data.cursor import DataCursor, shard
from survival.cases import Case
from survival.rivals import GUARD, RESTARTS, RIVALS
from survival.tasks import WARMUP_STEPS, Task, as_dict

CHECKPOINT_EVERY = 40
MOST_RESTARTS = 5
FLAT_STEPS = 100
"""The learning rate falls to zero after these, as in real runs; a run ends where its noise is small."""
IN_THE_DATA = ("poisoned_batch", "label_noise")
SNAPSHOT_EVERY = 20
CONFIG: dict[str, Any] = {
    "snapshot": {"every_steps": SNAPSHOT_EVERY},
    "recovery": {"cooldown_steps": 20},
    "local_norm": "always",
}
"""Of our guard: its defaults, but for a run of 160 steps in place of many thousands."""


@dataclass(slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        score: held-out loss at the end, NaN if the run was lost.
        lost: steps that had to be repeated or were given up.
        seconds: of the whole run.
        digest: of the final weights.
        attempts: batches that were computed, also those that were refused or repeated.
        incidents: as journaled.
        halted: whether the method gave up.
    """

    score: float
    lost: int
    seconds: float
    digest: float
    attempts: int
    halted: bool = False
    incidents: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Training:
    """The same model, batches, schedule and faults for every method."""

    def __init__(self, task: Task, case: Case, seed: int) -> None:
        self.task, self.case = task, case
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(seed)
        bare = task.build()
        self.model = DistributedDataParallel(bare)
        rate = task.lr * case.lr_factor
        self.optimizer = torch.optim.AdamW(bare.parameters(), lr=rate, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min(1.0, (step + 1) / WARMUP_STEPS, (case.steps - step) / (case.steps - FLAT_STEPS)),
        )
        self.cursor = DataCursor(task.samples, task.batch_size, seed)
        self.position = self.attempts = 0
        faults = [FaultConfig.model_validate(f) for f in case.faults if f["kind"] not in IN_THE_DATA]
        self.faults = FaultInjector(faults, model=self.model, optimizer=self.optimizer, rank=self.rank)

    def next_ids(self, step: int) -> Tensor:
        """This rank's samples of the next batch."""
        self.position = self.cursor.epoch * self.cursor.batches_per_epoch + self.cursor.index
        self.attempts += 1
        batch = self.cursor.next_batch()
        self.faults.begin(step)
        return torch.from_numpy(shard(batch.ids, self.rank, self.world_size).copy())

    def loss(self, ids: Tensor) -> Tensor:
        """The batch of these samples, with the faults of this step."""
        batch = self.corrupted(as_dict(self.task.batch(ids)))
        return self.faults.loss(self.task.loss(self.model, tuple(batch.values())))

    def corrupted(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bad data on disk is as bad when read again; a method that moves on passes it."""
        for fault in self.case.faults:
            bad = range(fault["step"], fault["step"] + fault.get("times", 1))
            if (
                fault["kind"] in IN_THE_DATA
                and self.position in bad
                and self.rank == fault.get("rank", self.rank)
            ):
                config = FaultConfig.model_validate({**fault, "step": 0, "times": 1, "rank": None})
                injector = FaultInjector([config], model=self.model, optimizer=self.optimizer)
                injector.begin(0)
                batch = injector.batch(batch)
        return batch

    def outcome(self, seconds: float, lost: int, **more: Any) -> Outcome:
        """As rank 0 sees it."""
        bare = self.model.module
        weights = torch.cat([p.detach().double().flatten() for p in bare.parameters()])
        score = self.task.score(bare)
        digest = float((weights * torch.arange(1, len(weights) + 1, dtype=torch.float64)).sum())
        return Outcome(score=score, lost=lost, seconds=seconds, digest=digest, attempts=self.attempts, **more)


def run(task: Task, case: Case, method: str, seed: int) -> Outcome:
    """Trains, on every rank alike."""
    training = Training(task, case, seed)
    started = time.perf_counter()
    finish: Callable[[Training], tuple[int, dict[str, Any]]]
    finish = _guarded if method == GUARD else lambda t: (_rivalled(t, method), {})
    lost, more = finish(training)
    return training.outcome(time.perf_counter() - started, lost, **more)


def _guarded(training: Training) -> tuple[int, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "incidents.jsonl"
        guard = GradientGuard(
            training.model,
            training.optimizer,
            GuardConfig.model_validate(CONFIG),
            scheduler=training.schedule,
            data=training.cursor,
            journal=journal,
        )
        incidents, lost, halted = [], 0, False
        while guard.steps < training.case.steps and not halted:
            before = guard.steps
            try:
                report = _guarded_step(training, guard)
            except GuardHalt as halt:
                incidents.append(halt.incident.to_dict())
                lost, halted = lost + training.case.steps - before, True
                break
            if report.incident is not None:
                incidents.append(report.incident.to_dict())
            lost += before + 1 - report.step if not report.applied else 0
    return lost, {"halted": halted, "incidents": incidents}


def _guarded_step(training: Training, guard: GradientGuard) -> Any:
    ids = training.next_ids(guard.steps)
    training.optimizer.zero_grad()
    guard.backward(training.loss(ids))

    def again() -> Tensor:
        training.faults.repeat()
        return training.loss(ids)

    return guard.step(again)


def _rivalled(training: Training, method: str) -> int:
    """The plain loop; a method that restarts does so from the latest checkpoint, good or bad."""
    rival = RIVALS[method](list(training.model.parameters()), training.optimizer)
    lost, restarts, step = 0, 0, 0
    kept = _state(training, step)
    while step < training.case.steps:
        ids = training.next_ids(step)
        training.optimizer.zero_grad()
        loss = training.loss(ids)
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        value = float(mean) / training.world_size
        if method == RESTARTS and not math.isfinite(value) and restarts < MOST_RESTARTS:
            restarts += 1
            lost += step - kept["step"] + 1
            step = _load(training, kept)
            continue
        lost += not rival.update(value)
        training.schedule.step()
        step += 1
        if method == RESTARTS and step % CHECKPOINT_EVERY == 0:
            kept = _state(training, step)
    return lost


def _state(training: Training, step: int) -> dict[str, Any]:
    parts = (training.model, training.optimizer, training.schedule, training.cursor)
    return {"step": step, "parts": [copy.deepcopy(part.state_dict()) for part in parts]}


def _load(training: Training, kept: dict[str, Any]) -> int:
    parts = (training.model, training.optimizer, training.schedule, training.cursor)
    for part, state in zip(parts, kept["parts"], strict=True):
        part.load_state_dict(copy.deepcopy(state))
    return int(kept["step"])
