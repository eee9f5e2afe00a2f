"""Cost of a checkpoint: how long training waits for it, against ``torch.save`` of the same state.

    python tests/benchmarks/bench_checkpoint.py [--model resnet50] [--saves 5] [--folder DIR]

Both write and fsync. Ours also verifies, names and promotes in the background; the wait is only the copy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import publish

from jobs.checkpoints import CheckpointManager
from jobs.torchvision_compat import import_torchvision

SEED = 0


def main() -> None:
    """Prints medians over the saves after the first, which allocates."""
    options = _options()
    parts = _trained(options.model)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs.pt"
        checkpoints = CheckpointManager(ours, parts, notify=lambda level, text: print(level, text))
        waits, totals = [], []
        for step in range(1, options.saves + 2):
            started = time.perf_counter()
            checkpoints.save(step)
            waits.append(time.perf_counter() - started)
            checkpoints.finish()
            totals.append(time.perf_counter() - started)
            checkpoints.clean_step()
            checkpoints.clean_step()
        checkpoints.finish()
        plain = [_seconds(lambda: _torch_save(parts, theirs)) for _ in range(options.saves + 1)]
        loads = [_seconds(CheckpointManager(ours, parts).load_latest) for _ in range(3)]
        plain_loads = [_seconds(lambda: torch.load(theirs, weights_only=True)) for _ in range(3)]
        megabytes = theirs.stat().st_size / 2**20
    figures = {
        "training waits": (waits[1:], plain[1:]),
        "until it is on the disk": (totals[1:], plain[1:]),
        "load": (loads, plain_loads),
    }
    rows = [_row(what, ours, plainly) for what, (ours, plainly) in figures.items()]
    tables = {f"checkpoint of {options.model}, {megabytes:.0f} MiB": rows}
    publish("checkpoint", tables, options.json, seeds=[SEED])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="any torchvision classification model")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    return parser.parse_args()


def _trained(name: str) -> dict[str, Any]:
    torch.manual_seed(SEED)
    model = import_torchvision().models.get_model(name)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


def _torch_save(parts: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        file.flush()
        os.fsync(file.fileno())


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _row(what: str, ours: list[float], plain: list[float]) -> dict[str, Any]:
    """Medians. Ours verifies what it loads; torch.save and torch.load do not detect damage."""
    mine, theirs = 1e3 * statistics.median(ours), 1e3 * statistics.median(plain)
    return {"what": what, "ours ms": mine, "torch.save, torch.load ms": theirs, "ratio": mine / theirs}


if __name__ == "__main__":
    main()
