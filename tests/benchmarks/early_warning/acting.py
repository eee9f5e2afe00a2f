"""What the guard changes in runs that it warns of: a lower rate while a warning lasts, or rollbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from early_warning.log import Log
from early_warning.trainings import Run, train
from guard import GradientGuard, GuardHalt

ACTIONS: dict[str, dict[str, Any]] = {
    "none": {"mode": "off"},
    "rollbacks (rate: off)": {"rate": "off"},
    "the rate is lowered too (rate: act)": {"rate": "act"},
}
LAST = 25
"""The final loss is the mean of so many."""
NO_WORSE = 1.02


class Guarded:
    """Makes the updates of a training under the guard; its log is the history that stands."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        again: Callable[[], Tensor] | None = None,
        config: dict[str, Any],
    ) -> None:
        self.guard, self._optimizer = GradientGuard(model, optimizer, config), optimizer
        self._again = again
        self._losses: dict[int, float] = {}

    def update(self, loss: Tensor) -> None:
        """One attempt; none after a halt."""
        self._optimizer.zero_grad()
        self.guard.backward(loss)
        try:
            report = self.guard.step(self._again)
        except GuardHalt:
            self._losses[self.guard.steps + 1] = math.inf
            return
        if report.applied:
            self._losses = {step: known for step, known in self._losses.items() if step < report.step}
            self._losses[report.step] = report.loss

    def log(self, name: str) -> Log:
        """Its losses alone."""
        losses, none = np.array([*self._losses.values()]), np.zeros((0, 4))
        return Log(name, 1, losses, losses, losses, none[:, :, None], np.zeros(0), [], none, none)


def table(runs: Sequence[Run], crossing: Callable[[Log], int | None]) -> list[dict[str, Any]]:
    """A row an action; ``crossing``: where the loss of a log is far above its level."""
    logs = {action: [train(run, _under(config)) for run in runs] for action, config in ACTIONS.items()}
    ends = {action: [_end(log) for log in found] for action, found in logs.items()}
    rows = []
    for action, found in logs.items():
        others = zip(*(end for other, end in ends.items() if other != action), strict=True)
        shares = [end / min(other) for end, other in zip(ends[action], others, strict=True)]
        rows.append(
            {
                "action": action,
                "runs": len(runs),
                "the loss explodes": sum(crossing(log) is not None for log in found),
                "final loss (mean)": fmean(ends[action]),
                "no worse than the others": sum(share <= NO_WORSE for share in shares),
            }
        )
    return rows


def _under(config: dict[str, Any]) -> Callable[..., Guarded]:
    return partial(Guarded, config=config)


def _end(log: Log) -> float:
    """At most the loss before the first update: an exploded run is lost, however far."""
    end, first = fmean(log.loss[-LAST:]), float(log.loss[0])
    return min(end, 2 * first) if math.isfinite(end) else 2 * first
