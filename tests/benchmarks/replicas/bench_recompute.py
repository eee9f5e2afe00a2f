"""What a batch that is computed twice costs, and with it ``recompute: auto``, as a share of the steps.

python -m tests.benchmarks.replicas.bench_recompute [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from guard import GradientGuard, GuardConfig
from guard.decide.repeats import ATTEMPTS
from tests.benchmarks.replicas.bench_cost import NETWORKS

EVERY = 4
"""Attempts from one batch that is computed twice to the next, here."""


def measured(name: str, repeats: int) -> dict[str, float]:
    """Medians of the processor time of attempts that compute their batch once, and twice."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    optimizer = torch.optim.AdamW(model.parameters())
    guard = GradientGuard(model, optimizer, GuardConfig(recompute=EVERY, update_norm="off"))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for attempt in range(1, EVERY * (repeats + 1) + 1):
        started = time.process_time()
        optimizer.zero_grad()
        closure = lambda: model(inputs).square().mean()  # noqa: E731
        guard.backward(closure())
        guard.step(closure)
        if attempt > EVERY:
            seconds[attempt % EVERY == 0].append(time.process_time() - started)
    once, twice = median(seconds[False]), median(seconds[True])
    return {"step_ms": 1e3 * once, "twice": twice / once, "auto": (twice / once - 1) / ATTEMPTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = {name: measured(name, given.repeats) for name in NETWORKS}
    for name, row in result.items():
        print(
            f"{name}: {row['step_ms']:.1f} ms a step, {row['twice']:.2f} times that computed twice, "
            f"auto {row['auto']:.2%}"
        )
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
