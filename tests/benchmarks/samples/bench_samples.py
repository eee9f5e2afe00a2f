"""Is the bad sample of a batch ranked first? Four kinds, ten seeds, on one rank and on two.

python -m tests.benchmarks.samples.bench_samples [--seeds N] [--ranks N] [--kinds KIND ...]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch

from tests.benchmarks.samples.cases import KINDS, Kind, trial
from tests.guard.ranks import on_ranks

Row = tuple[Kind, int, bool, bool, float]
"""Kind, seed, whether there was an incident, whether the bad sample is first, seconds of the guard's step."""


def main() -> None:
    """Prints how often the bad sample was ranked first, by kind."""
    options = _options()
    work = partial(measured, seeds=options.seeds, kinds=tuple(options.kinds))
    with tempfile.TemporaryDirectory() as folder:
        rows = on_ranks(options.ranks, work, Path(folder))[0] if options.ranks > 1 else work(0, 1, Path())
    print("\n".join(table(rows)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    return parser.parse_args()


def measured(_rank: int, _ranks: int, _folder: Path, *, seeds: int, kinds: tuple[Kind, ...]) -> list[Row]:
    """One rank's part: every kind with every seed."""
    torch.set_num_threads(1)
    logging.getLogger("guard").setLevel(logging.ERROR)
    return [_row(kind, seed) for kind in kinds for seed in range(seeds)]


def _row(kind: Kind, seed: int) -> Row:
    done = trial(kind, seed)
    return kind, seed, done.incident is not None, done.first, done.report.guard_seconds


def table(rows: list[Row]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| Bad sample | incidents | ranked first | seconds (median) |", "|---|---|---|---|"]
    for kind in dict.fromkeys(row[0] for row in rows):
        of = [row for row in rows if row[0] == kind]
        incidents, first = sum(row[2] for row in of), sum(row[3] for row in of)
        seconds = statistics.median(row[4] for row in of)
        lines.append(f"| {kind} | {incidents} of {len(of)} | {first} of {len(of)} | {seconds:.2g} |")
    return lines


if __name__ == "__main__":
    main()
