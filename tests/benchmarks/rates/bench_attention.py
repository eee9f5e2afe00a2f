"""What ``guard.attention: qk_clip`` changes where the learning rate is too high: the table of guard/README.

    python -m tests.benchmarks.rates.bench_attention [--seeds N] [--steps N]

The small GPT of the survival benchmark, AdamW, ten steps of warm-up and a linear decay from half of the run
on; measured every five attempts. Prints held-out loss, largest logit seen, and layers rescaled.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from survival.tasks import WARMUP_STEPS, Task, tasks

from guard import GradientGuard, GuardHalt
from jobs.data.cursor import DataCursor

TIMES = (1.0, 10.0, 30.0)
SETTINGS: dict[str, dict[str, Any]] = {
    "without": {"action": "watch"},
    "tau 100": {"action": "qk_clip"},
    "tau 30": {"action": "qk_clip", "tau": 30.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for times in TIMES:
        for seed in range(options.seeds):
            for name, attention in SETTINGS.items():
                loss, largest, clips = trained(tasks()["gpt"], times, seed, options.steps, attention)
                print(f"{times:g}x seed {seed} {name}: {loss:.3f}, {largest:.4g}, {clips}", flush=True)


def trained(
    task: Task, times: float, seed: int, steps: int, attention: dict[str, Any]
) -> tuple[float, float, int]:
    """Held-out loss in nats (NaN after a halt), the largest logit, and how many layers were rescaled."""
    torch.manual_seed(seed)
    model = task.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr * times, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS, 2 * (steps - step) / steps)
    )
    cursor = DataCursor(task.samples, task.batch_size, seed)
    settings = {"attention": {"every": 5, **attention}}
    guard = GradientGuard(model, optimizer, settings, scheduler=schedule, data=cursor)
    largest = 0.0
    while guard.steps < steps:
        batch = task.batch(torch.from_numpy(cursor.next_batch().ids.copy()))
        optimizer.zero_grad()
        guard.backward(task.loss(model, batch))
        try:
            report = guard.step(lambda batch=batch: task.loss(model, batch))
        except GuardHalt:
            return math.nan, largest, guard.totals.qk_clips
        largest = max(largest, report.attention_logit or 0.0)
    return task.score(model), largest, guard.totals.qk_clips


if __name__ == "__main__":
    main()
