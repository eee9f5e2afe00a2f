"""What the comparisons of ``replicas: auto`` cost of a step, on two ranks of one thread each.

    python -m tests.benchmarks.replicas.bench_cost [--steps N] [--json FILE]

``first``: of the first ten steps, with the three comparisons at the start; ``later``: of the steps after.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from guard.act.replicas import Replicas, replicated
from guard.observe.observer import Observer
from guard.observe.watched import Watched
from tests.guard.ranks import on_ranks


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)), torch.randn(64, 64)


def cnn() -> tuple[nn.Module, Tensor]:
    layers = [nn.Conv2d(3 if i == 0 else 64, 64, 3, padding=1) for i in range(24)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return model, torch.randn(4, 3, 16, 16)


def transformer(width: int, layers: int, batch: int) -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), torch.randn(batch, 64, width)


NETWORKS = {
    "MLP, 19 thousand": mlp,
    "24 convolutions, 0.9 million": cnn,
    "transformer, 0.8 million": partial(transformer, 128, 4, 4),
    "transformer, 12.6 million": partial(transformer, 512, 4, 4),
}


def on_a_rank(rank: int, world_size: int, folder: Path, *, steps: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {name: measured(name, steps) for name in NETWORKS}


def measured(name: str, steps: int) -> dict[str, float]:
    """Trains for ``steps`` steps, and compares as an exact guard does."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    ddp, optimizer = DistributedDataParallel(model), torch.optim.AdamW(model.parameters())
    replicas = Replicas(replicated(model, optimizer, Observer(watched=Watched(model, optimizer))), None, None)
    checks, first, middle, began = 0.0, 0.0, 0.0, time.perf_counter()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        ddp(inputs).square().mean().backward()
        optimizer.step()
        if replicas.due(step):
            started = time.perf_counter()
            assert not replicas.check(step)
            checks += time.perf_counter() - started
        if step == 10:
            first, middle = checks, time.perf_counter()
    ended = time.perf_counter()
    return {
        "step_ms": 1e3 * (ended - middle - checks + first) / (steps - 10),
        "every": replicas.every,
        "first": first / (middle - began),
        "later": (checks - first) / (ended - middle),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=210)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = on_ranks(2, partial(on_a_rank, steps=given.steps), Path(folder))[0]
    for name, row in result.items():
        print(f"{name}: {row['step_ms']:.1f} ms a step, every {row['every']}, {row['later']:.2%} of the time")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
