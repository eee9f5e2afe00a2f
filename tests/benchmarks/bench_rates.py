"""How much does a rate that is too high cost? Four networks, rates of 1 to 300 times the best, by method.

    python tests/benchmarks/bench_rates.py [--quick] [--seeds N] [--tasks NAME ...] [--json FILE]

The LR sensitivity (Wortsman et al. 2023) is the mean over rates and seeds of how far the held-out loss ends
above the best that any run without a method or with a plain clip reaches; at most 1 a run, so that a lost run
counts as 1. With ``--keep FILE`` every run is written there as it ends and not made again.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from pathlib import Path
from typing import Any

import torch
from measure import progress, publish
from rates.methods import METHODS, PRODIGY, held_out, lacking
from rates.tasks import RateTask, tasks

TIMES = (1, 3, 10, 30, 100, 300)
SENSITIVITY = "LR sensitivity"
REFERENCE = ("no guard", "clip 1.0")
Run = tuple[str, str, int, int, int]
"""Task, method, times the best rate, seed, steps."""


def main() -> None:
    """Trains, and publishes the sensitivities and the losses behind them."""
    options = _options()
    torch.set_num_threads(1)
    logging.getLogger("guard").setLevel(logging.ERROR)
    chosen = {name: task for name, task in tasks().items() if name in (options.tasks or tasks())}
    reasons = {method: lacking(method) for method in METHODS}
    methods = [method for method, reason in reasons.items() if reason is None]
    for reason in filter(None, reasons.values()):
        progress(reason)
    runs = [
        (name, method, times, seed, options.steps)
        for name in chosen
        for method in methods
        for seed in range(options.seeds)
        for times in options.times
        if method != PRODIGY or times == options.times[0]
    ]
    found = results(runs, chosen, options.keep)
    publish("rates", tables(found, options.times), options.json, seeds=range(options.seeds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, three rates, 100 steps, no text")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--tasks", nargs="+", choices=list(tasks()))
    parser.add_argument("--keep", type=Path, help="runs that were made; new ones are added")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.times = (1, 30, 300) if options.quick else TIMES
    options.seeds = options.seeds or (1 if options.quick else 2)
    options.steps = options.steps or (100 if options.quick else 200)
    options.tasks = options.tasks or (list(tasks())[:2] if options.quick else None)
    return options


def results(runs: list[Run], chosen: dict[str, RateTask], keep: Path | None) -> dict[Run, float]:
    """The held-out loss of each, from the file of those that were made before or from making them."""
    lines = keep.read_text().splitlines() if keep and keep.exists() else []
    known = {tuple(run): loss for run, loss in map(json.loads, lines)}
    for number, run in enumerate(runs, start=1):
        if run in known:
            continue
        name, method, times, seed, steps = run
        known[run] = held_out(chosen[name], method, times, seed, steps)
        if keep:
            with keep.open("a") as kept:
                kept.write(json.dumps([run, known[run]]) + "\n")
        if number % 20 == 0:
            progress(f"{number} of {len(runs)} runs")
    return {run: known[run] for run in runs}


def tables(found: dict[Run, float], times: tuple[int, ...]) -> dict[str, list[dict[str, Any]]]:
    """The sensitivity of each method, and for each task the losses that it comes from."""
    names, methods = (list(dict.fromkeys(run[i] for run in found)) for i in (0, 1))
    shown: dict[str, list[dict[str, Any]]] = {SENSITIVITY: []}
    best = {name: _best(name, found, times) for name in names}
    for method in methods:
        each = {name: _excess(_losses(name, method, found, times), best[name]) for name in names}
        shown[SENSITIVITY].append({"method": method, **each, "mean": statistics.fmean(each.values())})
    for name in names:
        rows = ({"method": m, **_means(_losses(name, m, found, times))} for m in methods)
        shown[f"{name}: held-out loss by rate, times the best"] = list(rows)
    return shown


def _losses(
    name: str, method: str, found: dict[Run, float], times: tuple[int, ...]
) -> dict[int, list[float]]:
    """By rate, one a seed; a method with a rate of its own has the same everywhere."""
    losses: dict[int, list[float]] = {time: [] for time in times}
    for run, loss in found.items():
        if run[:2] == (name, method):
            for time in times if method == PRODIGY else (run[2],):
                losses[time].append(loss)
    return losses


def _best(name: str, found: dict[Run, float], times: tuple[int, ...]) -> float:
    return min(
        statistics.fmean(losses)
        for method in REFERENCE
        for losses in _losses(name, method, found, times).values()
    )


def _excess(losses: dict[int, list[float]], best: float) -> float:
    return statistics.fmean(min(1.0, loss - best) for each in losses.values() for loss in each)


def _means(losses: dict[int, list[float]]) -> dict[str, float]:
    return {f"x {time}": statistics.fmean(each) for time, each in losses.items()}


if __name__ == "__main__":
    main()
