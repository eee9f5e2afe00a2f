"""Is a right rate left alone by ``rate: act``? Every training at its best rate, beside ``rate: off``.

    python -m tests.benchmarks.rates.bench_untouched [--seeds N] [--steps N]

The four of the benchmark, and the ten that no constant was chosen on. ``tried``: a duel returned to the
start; ``cut``: the rate is lower in the end; ``other bits``: weights or moments differ. Then the healthy
trainings of the guard's tests, which pass no closure: ``touched`` is a return to the start, or a rate that
was changed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

sys.path.insert(0, str(Path(__file__).parents[1]))

from guard import GradientGuard
from rates.methods import Loss, factor
from rates.tasks import RateTask, tasks
from rates.unseen import unseen
from tests.guard.healthy.further import FURTHER
from tests.guard.healthy.trainings import TRAININGS
from tests.guard.loops import differences

SCHEDULES = ("constant", "warm-up, cosine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("guard").setLevel(logging.ERROR)
    total = Counter[str]()
    for name, task in {**tasks(), **unseen()}.items():
        found = Counter[str]()
        for seed in range(options.seeds):
            for schedule in SCHEDULES:
                found.update(compared(task, schedule, seed, options.steps))
        total.update(found)
        print(f"{name}: {dict(found)}", flush=True)
    print(f"all: {dict(total)}")
    for training in (*TRAININGS, *FURTHER):
        found = Counter(runs=0, touched=0)
        for seed in range(options.seeds):
            training(seed, partial(watched, found))
        print(f"{training.__name__}: {dict(found)}", flush=True)


def compared(task: RateTask, schedule: str, seed: int, steps: int) -> Counter[str]:
    """One training whose rate the guard may change, and one whose rate it may not."""
    ends, found = list[dict[str, Any]](), Counter(runs=1)
    for rate in ("off", "act"):
        torch.manual_seed(seed)
        model = task.task.build()
        loss = Loss(task, model, seed)
        optimizer = task.optimizer(model.parameters(), task.task.lr)
        scheduler = LambdaLR(optimizer, partial(factor, schedule, steps))
        guard = GradientGuard(model, optimizer, {"rate": rate}, scheduler=scheduler, data=loss)
        while guard.steps < steps:
            optimizer.zero_grad()
            guard.backward(loss())
            report = guard.step(partial(loss, again=True))
        ends.append({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    found["tried"] += guard.attempts > 1.5 * steps
    found["cut"] += report.rate_factor != 1.0
    found["other bits"] += bool(differences(*ends))
    return found


def watched(found: Counter[str], model: nn.Module, optimizer: Optimizer, scheduler: Any = None) -> Any:
    """The update of a healthy training, with a guard of its own."""
    guard = GradientGuard(model, optimizer, {"rate": "act"}, scheduler=scheduler)
    found["runs"] += 1
    changed = False

    def update(loss: Tensor) -> None:
        nonlocal changed
        optimizer.zero_grad()
        guard.backward(loss)
        report = guard.step()
        if not changed and (report.rolled_back_to == 0 or report.rate_factor != 1.0):
            changed = True
            found["touched"] += 1

    return update


if __name__ == "__main__":
    main()
