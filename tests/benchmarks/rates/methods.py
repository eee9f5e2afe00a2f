"""One training with each method; packages that are absent are skipped, with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from survival.rivals import AdaGC, ClipNorm, Rival
from survival.tasks import Batch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from guard import GradientGuard, GuardHalt
from rates.tasks import RateTask

GUARD = "GradGuard, rate: act"
SCHEDULE_FREE, PRODIGY = "schedule-free", "Prodigy"
RIVALS: dict[str, type[Rival]] = {"no guard": Rival, "clip 1.0": ClipNorm, "AdaGC": AdaGC}
PACKAGES = {SCHEDULE_FREE: "schedulefree", PRODIGY: "prodigyopt"}
METHODS = (*RIVALS, *PACKAGES, GUARD)
CLIPS: dict[str, dict[str, Any]] = {
    "clip 1.0": {"kind": "norm", "max_norm": 1.0},
    "AdaGC": {"kind": "adagc"},
}
"""The rivals' clipping, done by the guard."""
CALIBRATION_BATCHES = 20
PATIENCE = 3
"""Attempts of the guard, in units of the steps that are to stand in the end."""
WARM_UP = 10
"""A linear warm-up takes one step in so many."""
SCHEDULES = ("constant", "cosine", "warm-up, cosine")

Factor = Callable[[int], float]
"""What the rate is multiplied by at a step."""


class Loss:
    """Forward on the next batch; with ``again=True`` on the same one. Its state is the cursor of the data."""

    def __init__(self, task: RateTask, model: nn.Module, seed: int) -> None:
        self._task, self._model = task.task, model
        self._batches = torch.Generator().manual_seed(1000 + seed)
        self._latest: list[Batch] = []

    def __call__(self, *, again: bool = False) -> Tensor:
        if not again:
            self._draw()
        return self._task.loss(self._model, self._latest[0])

    def of(self, model: nn.Module) -> Tensor:
        """Of another model on the next batch."""
        self._draw()
        return self._task.loss(model, self._latest[0])

    def _draw(self) -> None:
        ids = torch.randint(self._task.samples, (self._task.batch_size,), generator=self._batches)
        self._latest = [self._task.batch(ids)]

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state["batches"])


def lacking(method: str) -> str | None:
    """Why a method cannot be run; None where it can."""
    package = PACKAGES.get(method)
    if package is None:
        return None
    try:
        import_module(package)
    except ImportError:
        return f"{method} is skipped: pip install {package}"
    return None


def held_out(task: RateTask, method: str, schedule: str, times: float, seed: int, steps: int) -> float:
    """The loss on held-out data after a training at ``times`` the best rate; infinite where it is lost."""
    torch.manual_seed(seed)
    model = task.task.build()
    loss = Loss(task, model, seed)
    train = _TRAIN.get(method, _by_rival(method))
    train(task, model, loss, times * task.task.lr, partial(factor, schedule, steps), steps)
    found = task.task.score(model)
    return found if math.isfinite(found) else math.inf


def factor(schedule: str, steps: int, step: int) -> float:
    """What the rate is multiplied by."""
    falls = 1.0 if schedule == "constant" else (1 + math.cos(math.pi * min(step, steps) / steps)) / 2
    return falls * (min(1.0, WARM_UP * (step + 1) / steps) if "warm-up" in schedule else 1.0)


def _by_rival(method: str) -> Callable[..., None]:
    def train(task: RateTask, model: nn.Module, loss: Loss, lr: float, factor: Factor, steps: int) -> None:
        optimizer = task.optimizer(model.parameters(), lr)
        schedule, rival = LambdaLR(optimizer, factor), RIVALS[method](list(model.parameters()), optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            rival.update(float(value.detach()))
            schedule.step()

    return train


def _guarded(
    task: RateTask,
    model: nn.Module,
    loss: Loss,
    lr: float,
    factor: Factor,
    steps: int,
    **further: dict[str, Any],
) -> None:
    optimizer = task.optimizer(model.parameters(), lr)
    schedule = LambdaLR(optimizer, factor)
    guard = GradientGuard(model, optimizer, {"rate": "act", **further}, scheduler=schedule, data=loss)
    try:
        for _ in range(PATIENCE * steps):
            optimizer.zero_grad()
            guard.backward(loss())
            guard.step(partial(loss, again=True))
            if guard.steps == steps:
                return
    except GuardHalt:
        return


def _schedule_free(
    task: RateTask, model: nn.Module, loss: Loss, lr: float, factor: Factor, steps: int
) -> None:
    """Defazio et al. (2024): without a schedule; BatchNorm is calibrated for the averaged weights."""
    package = import_module("schedulefree")
    sgd = isinstance(task.optimizer(model.parameters(), lr), SGD)
    kind = package.SGDScheduleFree if sgd else package.AdamWScheduleFree
    optimizer: Any = kind(model.parameters(), lr=lr)
    optimizer.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    optimizer.eval()
    with torch.no_grad():
        for _ in range(CALIBRATION_BATCHES):
            loss()


def _prodigy(task: RateTask, model: nn.Module, loss: Loss, lr: float, factor: Factor, steps: int) -> None:
    """Mishchenko and Defazio (2023): it finds the rate itself, ``lr`` stays 1 as its authors advise."""
    optimizer: Any = import_module("prodigyopt").Prodigy(model.parameters(), lr=1.0)
    schedule = LambdaLR(optimizer, factor)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


_TRAIN: dict[str, Callable[..., None]] = {
    GUARD: _guarded,
    SCHEDULE_FREE: _schedule_free,
    PRODIGY: _prodigy,
    **{f"{GUARD}, {name}": partial(_guarded, clip=clip) for name, clip in CLIPS.items()},
}
