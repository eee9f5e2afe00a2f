"""What the comparisons of ``replicas: auto`` cost of a step, on two ranks of one thread each.

    python -m tests.benchmarks.replicas.bench_cost [--steps N] [--networks MLP] [--json FILE]

``first``: of the first ten steps, with the three comparisons at the start; ``later``: of the steps after. Of
the smallest network there are ten times as many, so that they hold several intervals of its comparisons.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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


def on_a_rank(rank: int, world_size: int, folder: Path, *, steps: int, networks: list[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    wanted = [name for name in NETWORKS if name.startswith(tuple(networks))]
    return {name: measured(name, steps * (10 if name.startswith("MLP") else 1)) for name in wanted}


def measured(name: str, steps: int) -> dict[str, float]:
    """Trains for ``steps`` steps, and compares as an exact guard does."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    ddp, optimizer = DistributedDataParallel(model), torch.optim.AdamW(model.parameters())
    replicas = Replicas(replicated(model, optimizer, Observer(watched=Watched(model, optimizer))), None, None)
    checks, first, began = clocks() * 0, clocks() * 0, clocks()
    middle = began
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        ddp(inputs).square().mean().backward()
        optimizer.step()
        if replicas.due(step):
            started = clocks()
            assert not replicas.check(step)
            checks += clocks() - started
        if step == 10:
            first, middle = checks.copy(), clocks()
    ended = clocks()
    wall, processor = ((checks - first) / (ended - middle)).tolist()
    return {
        "step_ms": 1e3 * float((ended - middle - checks + first)[0]) / (steps - 10),
        "every": replicas.every,
        "first": float((first / (middle - began))[0]),
        "later": wall,
        "later, processor": processor,
    }


def clocks() -> NDArray[np.float64]:
    """Seconds that have passed, and seconds of the processor: without the wait for the other rank."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=210)
    parser.add_argument("--networks", nargs="*", default=[""], help="the first letters of their names")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = partial(on_a_rank, steps=given.steps, networks=given.networks)
        result = on_ranks(2, work, Path(folder))[0]
    for name, row in result.items():
        shares = f"{row['later']:.2%} of the time, {row['later, processor']:.2%} of the processor's"
        print(f"{name}: {row['step_ms']:.1f} ms a step, every {row['every']}, {shares}")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
