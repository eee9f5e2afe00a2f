"""Which rate does the default ``rate: warn`` name, and which one ``gradguard check --lr-range``?

    python -m tests.benchmarks.rates.bench_advice [--seeds N] [--unseen]

Both as multiples of the best rate, for runs at 1 to 300 times as much: the attempt of the warning, and the
rate that it names; ``-`` where there is none in the first 60 attempts.
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR

sys.path.insert(0, str(Path(__file__).parents[1]))

from guard import GradientGuard, GuardHalt
from guard.preflight import learning_rate_range
from rates.methods import Loss, factor
from rates.tasks import RateTask, tasks
from rates.unseen import unseen

TIMES = (1, 3, 10, 30, 100, 300)
STEPS, ATTEMPTS = 200, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--unseen", action="store_true", help="the ten that no constant was chosen on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("guard").setLevel(logging.ERROR)
    for name, task in (unseen() if options.unseen else tasks()).items():
        for seed in range(options.seeds):
            suggested = ranged(task, seed)
            print(f"{name}, seed {seed}: --lr-range {_shown(suggested)}", flush=True)
            for schedule in ("constant", "warm-up, cosine"):
                named = [warned(task, schedule, times, seed) for times in TIMES]
                each = zip(TIMES, named, strict=True)
                rates = ", ".join(f"{times}x: {_shown(rate)} at {at}" for times, (at, rate) in each)
                print(f"    {schedule}: {rates}", flush=True)


def ranged(task: RateTask, seed: int) -> float | None:
    """What the range test suggests, over the best rate."""
    torch.manual_seed(seed)
    model = task.task.build()
    loss = Loss(task, model, seed)
    found = learning_rate_range(
        model, lambda twin, _: loss.of(twin), lambda twin: task.optimizer(twin.parameters(), 1.0)
    )
    return None if found.suggested is None else found.suggested / task.task.lr


def warned(task: RateTask, schedule: str, times: float, seed: int) -> tuple[int | None, float | None]:
    """The attempt of the warning, and the rate that it names over the best one."""
    torch.manual_seed(seed)
    model = task.task.build()
    loss = Loss(task, model, seed)
    optimizer = task.optimizer(model.parameters(), times * task.task.lr)
    scheduler = LambdaLR(optimizer, partial(factor, schedule, STEPS))
    guard = GradientGuard(model, optimizer, scheduler=scheduler, data=loss)
    try:
        for _ in range(ATTEMPTS):
            optimizer.zero_grad()
            guard.backward(loss())
            report = guard.step(partial(loss, again=True))
            if report.rate_advice != 1.0:
                return report.attempt, report.learning_rate * report.rate_advice / task.task.lr
    except GuardHalt:
        pass
    return None, None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


if __name__ == "__main__":
    main()
