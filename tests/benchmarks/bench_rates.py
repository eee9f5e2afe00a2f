"""How much does a rate that is too high cost? Four networks, rates of 1 to 300 times the best, by method.

    python tests/benchmarks/bench_rates.py [--quick] [--unseen] [--seeds N] [--tasks NAME ...] [--json FILE]

The LR sensitivity (Wortsman et al. 2023) is the mean over schedules, rates and seeds of how far the held-out
loss ends above the best that any run without a method or with a clip (1.0, AdaGC) reaches under that
schedule; at most 1 a run, so that a lost run counts as 1. Where ours ends over the best is the mean of the
ratios of single seeds, which share first weights and batches, with its standard error; the best method and
rate are those of the other seeds, so that luck does not choose them. ``--unseen`` trains ten other networks
that no constant was chosen on. ``--clip`` lets the guard clip as that rival does. With ``--keep FILE`` every
run is written there as it ends and not made again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from measure import progress, publish
from rates.methods import (
    CLIPS,
    GUARD,
    METHODS,
    PRODIGY,
    RIVALS,
    SCHEDULE_FREE,
    SCHEDULES,
    held_out,
    lacking,
)
from rates.tasks import RateTask, tasks
from rates.unseen import unseen

UNSEEN_METHODS = ("no guard", "clip 1.0", GUARD)
TIMES = (1, 3, 10, 30, 100, 300)
SENSITIVITY = "LR sensitivity"
OURS = "rate: act, held-out loss over the best"
WITHIN = 1.05
Run = tuple[str, str, str, int, int, int]
"""Task, method, schedule, times the best rate, seed, steps."""


def main() -> None:
    """Trains, and publishes the sensitivities and the losses behind them."""
    options = _options()
    torch.set_num_threads(1)
    logging.getLogger("guard").setLevel(logging.ERROR)
    known = unseen() if options.unseen else tasks()
    chosen = {name: task for name, task in known.items() if name in (options.tasks or known)}
    methods = (*(UNSEEN_METHODS if options.unseen else METHODS)[:-1], options.guard)
    reasons = {method: lacking(method) for method in methods}
    for reason in filter(None, reasons.values()):
        progress(reason)
    runs = [
        (name, method, schedule, times, seed, options.steps)
        for name in chosen
        for method, reason in reasons.items()
        for schedule in options.schedules
        for seed in range(options.seeds * chosen[name].repeats)
        for times in options.times
        if reason is None and (schedule, times) == _made(method, schedule, times, options)
    ]
    found = results(runs, chosen, options.keep)
    shown = tables(found, options.schedules, options.times)
    most = max(task.repeats for task in chosen.values())
    publish("rates", shown, options.json, seeds=range(options.seeds * most))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one schedule, three rates, no text")
    parser.add_argument("--unseen", action="store_true", help="the ten others; none, clip 1.0 and ours")
    parser.add_argument("--seeds", type=int, help="of the text; nine for three of it on the small images")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--tasks", nargs="+", choices=[*tasks(), *unseen()])
    parser.add_argument("--clip", choices=CLIPS, help="that ours clips with, instead of its default")
    parser.add_argument("--keep", type=Path, help="runs that were made; new ones are added")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.guard = f"{GUARD}, {options.clip}" if options.clip else GUARD
    options.times = (1, 30, 300) if options.quick else TIMES
    options.schedules = SCHEDULES[1:2] if options.quick else SCHEDULES
    options.seeds = options.seeds or (1 if options.quick else 3)
    options.steps = options.steps or (100 if options.quick else 200)
    options.tasks = options.tasks or (list(tasks())[:2] if options.quick else None)
    return options


def _made(method: str, schedule: str, times: int, options: argparse.Namespace) -> tuple[str, int]:
    """Where a run is made: a method with a rate or a schedule of its own has the same everywhere."""
    first = options.schedules[0] if method == SCHEDULE_FREE else schedule
    return first, options.times[0] if method == PRODIGY else times


def results(runs: list[Run], chosen: dict[str, RateTask], keep: Path | None) -> dict[Run, float]:
    """The held-out loss of each, from the file of those that were made before or from making them."""
    lines = keep.read_text().splitlines() if keep and keep.exists() else []
    known = {tuple(run): loss for run, loss in map(json.loads, lines)}
    for number, run in enumerate(runs, start=1):
        if run in known:
            continue
        known[run] = held_out(chosen[run[0]], *run[1:])
        if keep:
            with keep.open("a") as kept:
                kept.write(json.dumps([run, known[run]]) + "\n")
        if number % 20 == 0:
            progress(f"{number} of {len(runs)} runs")
    return {run: known[run] for run in runs}


def tables(
    found: dict[Run, float], schedules: Sequence[str], times: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """The sensitivity of each method, where ours ends beside the best, and the losses behind both."""
    names, methods = (list(dict.fromkeys(run[i] for run in found)) for i in (0, 1))
    losses = {
        (name, schedule, method): _losses(name, method, schedule, found, times)
        for name, schedule, method in product(names, schedules, methods)
    }
    best = {(n, s): _best(losses[n, s, m] for m in methods if m in RIVALS) for n in names for s in schedules}
    shown: dict[str, list[dict[str, Any]]] = {SENSITIVITY: [], OURS: []}
    for method in methods:
        each = {n: fmean(_excess(losses[n, s, method], best[n, s]) for s in schedules) for n in names}
        shown[SENSITIVITY].append({"method": method, **each, "mean": fmean(each.values())})
    guard = next((method for method in methods if method.startswith(GUARD)), None)
    for name, schedule in product(names, schedules):
        rows = ({"method": m, **_means(losses[name, schedule, m], times)} for m in methods)
        shown[f"{name}, {schedule}: held-out loss by rate, times the best"] = list(rows)
        if guard:
            rivals = [each for m in methods if m in RIVALS for each in losses[name, schedule, m]]
            ours = zip(times, losses[name, schedule, guard], strict=True)
            ratios = {f"x {time}": _over_best(each, rivals) for time, each in ours}
            shown[OURS].append({"network": name, "schedule": schedule, **ratios})
    return shown


def _losses(
    name: str, method: str, schedule: str, found: dict[Run, float], times: Sequence[int]
) -> list[list[float]]:
    """By rate, one a seed; a method with a rate or a schedule of its own has the same everywhere."""
    return [
        [
            loss
            for run, loss in found.items()
            if run[:2] == (name, method)
            and (method == SCHEDULE_FREE or run[2] == schedule)
            and (method == PRODIGY or run[3] == time)
        ]
        for time in times
    ]


def _best(each: Iterable[list[list[float]]]) -> float:
    return min(fmean(losses) for of_method in each for losses in of_method)


def _over_best(ours: list[float], rivals: list[list[float]]) -> str:
    """The geometric mean of the ratios of single seeds, and its standard error; marked where it is above 1.05
    by more than that."""
    seeds, logs = range(len(ours)), list[float]()
    for seed in seeds:
        others = [other for other in seeds if other != seed] or [seed]
        best = min(rivals, key=lambda each: fmean(each[other] for other in others))
        logs.append(math.log(ours[seed] / best[seed]))
    if len(logs) == 1 or not all(map(math.isfinite, logs)):
        return f"{math.exp(fmean(logs)):.2f}"
    ratio, error = math.exp(fmean(logs)), stdev(logs) / math.sqrt(len(logs))
    missed = " *" if ratio * (1 - error) > WITHIN else ""
    return f"{ratio:.2f} ± {ratio * error:.2f}{missed}"


def _excess(losses: list[list[float]], best: float) -> float:
    return fmean(min(1.0, loss - best) for each in losses for loss in each)


def _means(losses: list[list[float]], times: Sequence[int]) -> dict[str, float]:
    return {f"x {time}": fmean(each) for time, each in zip(times, losses, strict=True)}


if __name__ == "__main__":
    main()
