"""Random single-bit flips on two and three ranks, and a long healthy run: none missed, none by mistake.

    python -m tests.benchmarks.replicas.bench_flips [--flips N] [--steps N] [--ranks 2 3] [--mode deferred]

A flip is in a weight, a moment, a buffer or the reduced gradient of one rank. A flip that rounding removes in
the same step leaves no trace and cannot be found: it is counted apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.guard.flips import EVERY, KINDS, LATER, Flip, draw, judged, run
from tests.guard.loops import guarded_run
from tests.guard.ranks import on_ranks


def fused_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True)


def flips_on_a_rank(rank: int, world_size: int, folder: Path, *, flips: list[Flip], mode: str) -> list[Any]:
    return [run(rank, world_size, flip, mode=mode) for flip in (None, *flips)]


def healthy_rank(rank: int, world_size: int, folder: Path, *, steps: int, mode: str) -> list[Any]:
    """With BatchNorm, whose statistics are each rank's own, and dropout."""
    config = {"replicas": 1 if mode == "exact" else 2, "mode": mode}
    guarded = guarded_run(config, fused_sgd, ddp=True, rank=rank, world_size=world_size)
    guarded.model.broadcast_buffers = False
    guarded.train(steps, attempts=2 * steps)
    incidents = [report.incident for report in guarded.reports if report.incident is not None]
    return [incident.reason for incident in incidents if incident.signal == "replicas"]


def table(world_size: int, flips: int, mode: str) -> dict[str, Any]:
    drawn = draw(flips, world_size, later=LATER if mode == "deferred" else 0)
    with tempfile.TemporaryDirectory() as folder:
        ranks = on_ranks(world_size, partial(flips_on_a_rank, flips=drawn, mode=mode), Path(folder))
    plain = [results[0] for results in ranks]
    seen = [judged(flip, [r[i + 1] for r in ranks], plain) for i, flip in enumerate(drawn)]
    traced = [one for one in seen if one["found"] or one["differ"]]
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for one in seen:
        count = counts[one["flip"].kind]
        count["flips"] += 1
        count["no trace"] += one not in traced
        count["found"] += one["found"]
        count["within k"] += one["found"] and one["after"] <= EVERY
        count["named"] += one["named"]
        count["identical"] += not one["differ"]
        count["another rank named"] += bool(one["others"])
    missed = [one for one in traced if not one["found"] or one["differ"] or not one["named"] or one["others"]]
    return {"ranks": world_size, "kinds": {k: dict(c) for k, c in counts.items()}, "look at": missed}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--mode", choices=["exact", "deferred"], default="exact")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "flips": [table(n, given.flips, given.mode) for n in given.ranks if given.flips]
    }
    if given.steps:
        with tempfile.TemporaryDirectory() as folder:
            result["by mistake"] = on_ranks(
                2, partial(healthy_rank, steps=given.steps, mode=given.mode), Path(folder)
            )
    for found in result["flips"]:
        print(found["ranks"], "ranks:", json.dumps(found["kinds"]))
        for one in found["look at"][:12]:
            print("  ", one)
    print({key: value for key, value in result.items() if key != "flips"})
    if given.json:
        given.json.write_text(json.dumps(result, default=str, indent=1))


if __name__ == "__main__":
    main()
