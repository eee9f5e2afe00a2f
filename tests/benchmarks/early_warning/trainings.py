"""Explosions that nobody injected: rates that creep up 1 % a step, rise to 30 times the right one, or are 3
to 15 times as high, with a short warm-up or none, go up and down once, or start again. And healthy runs of
the same networks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from survival.tasks import Batch
from torch import Tensor, nn

from early_warning.further import further
from early_warning.log import Log, Logger
from early_warning.networks import models
from early_warning.unlike import unlike

SEED, OTHER_SEED = 0, 10
"""Of all trainings; of the healthy ones that had no part in any choice."""


class Run(NamedTuple):
    """One training: ``kind`` is the schedule of the rate, ``times`` the right rate at its peak (of ``creep``:
    at its start)."""

    model: str
    kind: str
    times: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.kind}-x{self.times:g}-s{self.seed}"

    @property
    def healthy(self) -> bool:
        return self.times == 1


def runs(*, quick: bool = False, later: bool = False) -> list[Run]:
    """All runs; ``later``: those of ``further`` and ``unlike``, each with three seeds where it is healthy."""
    if quick:
        return [Run("mlp", "ramp", 30, 0, 400), Run("mlp", "hramp", 1, 0, 500)]
    if later:
        names = [*further(), *unlike()]
        healthy = [run for model in names for seed in (1, 2) for run in _each(model, seed) if run.healthy]
        return [*(run for model in names for run in _each(model, SEED)), *healthy]
    return [run for model in models() for run in _each(model, SEED)]


def _each(model: str, seed: int) -> list[Run]:
    exploding = [
        Run(model, "creep", 0.3, seed, 600),
        Run(model, "ramp", 30, seed, 400),
        *(Run(model, "warm", times, seed, 400) for times in (5, 15)),
        *(Run(model, "const", times, seed, 400) for times in (3, 10)),
    ]
    found = [*exploding, Run(model, "hramp", 1, seed, 500), Run(model, "const", 1, seed, 500)]
    cycles = [Run(model, "cycle", 10, seed, 400), Run(model, "restarts", 6, seed, 500)]
    return [*found, *cycles, Run(model, "restarts", 1, seed, 1000)] if model in unlike() else found


class Updates(Protocol):
    """Makes the updates of a training, and has its log."""

    def update(self, loss: Tensor) -> None: ...
    def log(self, name: str) -> Log: ...


def train(run: Run, updates: Callable[..., Updates] = Logger) -> Log:
    """Trains, until the loss is not finite or far above its start."""
    task, optimizer_of, right = (models() | further() | unlike())[run.model]
    torch.manual_seed(run.seed)
    model, data = task.build(), torch.Generator().manual_seed(1000 + run.seed)
    optimizer = optimizer_of(model.parameters(), right * run.times)
    batch: list[Batch] = []
    batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    logger = updates(model, optimizer, again=None if batch_norm else lambda: task.loss(model, batch[-1]))
    first = math.inf
    for step in range(run.steps):
        optimizer.param_groups[0]["lr"] = right * run.times * _schedule(run, step)
        ids = torch.randint(task.samples, (task.batch_size,), generator=data)
        batch[:] = [task.batch(ids)]
        loss = task.loss(model, batch[0])
        first = min(first, float(loss.detach())) if step == 0 else first
        if not float(loss.detach()) < 1e6 * first:
            break
        logger.update(loss)
    return logger.log(run.name)


def zoo(seeds: Iterable[int], folder: Path) -> None:
    """Logs the healthy trainings of the guard's tests."""
    sys.path.append(str(Path(__file__).parents[3]))
    from tests.guard.healthy.further import FURTHER
    from tests.guard.healthy.trainings import TRAININGS

    for training in (*TRAININGS, *FURTHER):
        for seed in seeds:
            if (folder / f"zoo_{training.__name__}-s{seed}-0.npz").exists():
                continue
            loggers: list[Logger] = []

            def wrap(*parts: Any, scheduler: Any = None, made: list[Logger] = loggers) -> Any:
                made.append(Logger(*parts[:2], *(parts[2:] or (scheduler,))))
                return made[-1].update

            training(seed, wrap)
            for number, logger in enumerate(loggers):
                name = f"zoo_{training.__name__}-s{seed}-{number}"
                logger.log(name).save(folder / f"{name}.npz")


def _schedule(run: Run, step: int) -> float:
    """What the rate is multiplied by."""
    return {
        "const": 1.0,
        "creep": 1.01 ** max(0, step - 100),
        "ramp": (step + 1) / run.steps,
        "warm": min(1.0, (step + 1) / 100),
        "hramp": min(1.0, (step + 1) / 300),
        "cycle": (1 - math.cos(2 * math.pi * (step + 1) / run.steps)) / 2,
        "restarts": min(1.0, (step + 1) / 50) * (1.01 + math.cos(math.pi * (step % 200) / 200)) / 2,
    }[run.kind]
