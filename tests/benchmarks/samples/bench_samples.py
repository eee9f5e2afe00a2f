"""Is the bad sample of a batch ranked first? Four kinds, ten seeds, on one rank and on two.

PYTHONPATH=.:tests/benchmarks python tests/benchmarks/samples/bench_samples.py [--seeds N] [--ranks N ...]
    [--kinds KIND ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import progress, show

from tests.benchmarks.samples.cases import KINDS, Kind, trial
from tests.guard.ranks import on_ranks

Row = tuple[Kind, int, bool, bool, float]
"""Kind, seed, whether there was an incident, whether the bad sample is first, seconds of the guard's step."""


def main() -> None:
    """Publishes how often the bad sample was ranked first, by kind and number of ranks."""
    options = _options()
    work = partial(measured, seeds=options.seeds, kinds=tuple(options.kinds))
    rows: list[dict[str, Any]] = []
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            found = on_ranks(ranks, work, Path(folder))[0] if ranks > 1 else work(0, 1, Path())
        rows += table(found, ranks)
        progress(f"{ranks} rank{'s' if ranks > 1 else ''} measured")
    show("one bad sample in a batch of 64", rows, options.json, seeds=range(options.seeds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measured(_rank: int, _ranks: int, _folder: Path, *, seeds: int, kinds: tuple[Kind, ...]) -> list[Row]:
    """One rank's part: every kind with every seed."""
    torch.set_num_threads(1)
    logging.getLogger("guard").setLevel(logging.ERROR)
    return [_row(kind, seed) for kind in kinds for seed in range(seeds)]


def _row(kind: Kind, seed: int) -> Row:
    done = trial(kind, seed)
    return kind, seed, done.incident is not None, done.first, done.report.guard_seconds


def table(rows: list[Row], ranks: int) -> list[dict[str, Any]]:
    """A row a kind."""
    found = []
    for kind in dict.fromkeys(row[0] for row in rows):
        of = [row for row in rows if row[0] == kind]
        seconds = statistics.median(row[4] for row in of)
        counts = {
            "runs": len(of),
            "incidents": sum(row[2] for row in of),
            "ranked first": sum(row[3] for row in of),
        }
        found.append({"bad sample": kind, "ranks": ranks, **counts, "seconds (median)": seconds})
    return found


if __name__ == "__main__":
    main()
