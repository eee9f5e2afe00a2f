"""Faults against methods, on two workers: which survive, how close to the clean run, and at what cost.

    python tests/benchmarks/bench_survival.py [--quick] [--seeds N] [--tasks resnet gpt] [--json FILE]

Prints one table of survivors for each task and the details of our guard; the JSON has every row. The same
seeds give the same table. With ``--keep FILE`` every run is written there as it ends and not made again: a
long benchmark that was broken off continues.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measure import progress, publish
from rich.console import Console
from rich.table import Table
from survival.cases import Case, cases
from survival.fleet import SubmitRequest, fleet
from survival.rivals import GUARD, METHODS
from survival.tasks import tasks
from survival.verdicts import COMMON, judge
from survival_tables import DETAIL

LINES = 20
"""Interval of progress reports."""
QUICK_METHODS = ("no guard", "clip 1.0", "skip-step 6 sigma", GUARD)


def main() -> None:
    options = _options()
    known = {name: cases(task) for name, task in tasks().items() if name in options.tasks}
    if options.cases:
        known = {n: [c for c in cs if c.name in ("clean", *options.cases)] for n, cs in known.items()}
    orders = _orders(known, options.methods, options.seeds)
    rows = judge(_results(orders, options.keep), known)
    for task in known:
        Console(width=200).print(_survivors(task, rows, options.methods))
    tables = {task: [_common(row) for row in rows if row["task"] == task] for task in known}
    ours = [_own(row) for row in rows if row["method"] == GUARD]
    tables |= {DETAIL: ours} if ours else {}
    publish("survival", tables, options.json, seeds=range(options.seeds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, the ResNet, four methods")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--tasks", nargs="+", choices=["resnet", "gpt"])
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--cases", nargs="+", default=[])
    parser.add_argument("--keep", type=Path, help="runs that were made; new ones are added")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.seeds = options.seeds or (1 if options.quick else 2)
    options.tasks = options.tasks or (["resnet"] if options.quick else ["resnet", "gpt"])
    options.methods = options.methods or (QUICK_METHODS if options.quick else METHODS)
    return options


def _orders(known: dict[str, list[Case]], methods: Sequence[str], seeds: int) -> list[SubmitRequest]:
    return [
        (task, case.name, method, seed)
        for task, list_ in known.items()
        for case in list_
        for seed in range(seeds)
        for method in methods
    ]


def _results(orders: list[SubmitRequest], keep: Path | None) -> dict[SubmitRequest, dict[str, Any]]:
    """Of all orders, from the file of those that were run before or from running them."""
    lines = keep.read_text().splitlines() if keep and keep.exists() else []
    known = {tuple(order): outcome for order, outcome in map(json.loads, lines)}
    missing = [order for order in orders if order not in known]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        kept = stack.enter_context(keep.open("a")) if keep else None
        runs = fleet(missing, Path(folder)) if missing else iter(())
        for number, (order, outcome) in enumerate(runs, start=1):
            known[order] = outcome
            if number % -(-len(missing) // LINES) == 0:
                progress(f"{number} of {len(missing)} runs")
            if kept:
                kept.write(json.dumps([order, outcome]) + "\n")
                kept.flush()
    return {order: known[order] for order in orders}


def _survivors(task: str, rows: list[dict[str, Any]], methods: Sequence[str]) -> Table:
    table = Table(
        "fault", *methods, title=f"{task}: runs survived, held-out loss to the clean run's", box=None
    )
    by_case: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["task"] == task:
            by_case.setdefault(row["case"], {})[row["method"]] = row
    for case, found in by_case.items():
        table.add_row(case, *(_cell(found[method]) for method in methods))
    return table


def _cell(row: dict[str, Any]) -> str:
    ratio = "lost" if row["loss / clean"] is None else f"{row['loss / clean']:.3f}"
    return f"{row['survived']}/{row['seeds']}  {ratio}"


def _common(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of every method."""
    return {name: row[name] for name in COMMON}


def _own(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of GradGuard alone."""
    return {name: row[name] for name in row if name not in COMMON[4:]}


if __name__ == "__main__":
    main()
