"""The same training with faults, once with the guard and once without: what becomes of it.

    python tests/benchmarks/bench_explosion.py [SPEC] [--set FIELD=VALUE ...] [--figure FILE] [--json FILE]

Prints a table and JSON; the figure shows both loss curves.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from measure import publish, tell
from render import EXPLOSION
from rich.console import Console

from guard.records import StepRecord
from jobs.cluster.driver import run_job
from jobs.run_dir.jsonl import read_jsonl
from jobs.spec.job_spec import JobSpec

MODES = {"with the guard": "exact", "without": "off"}
EXAMPLE = Path(__file__).parents[2] / "jobs" / "examples" / "fashion.yaml"
SHOWN = ("steps", "anomalies", "skips", "rollbacks", "steps_lost", "guard_share", "seconds")
CEILING = 30.0


def main() -> None:
    options = _options()
    runs = {}
    with tempfile.TemporaryDirectory() as storage:
        for label, mode in MODES.items():
            tell(label)
            overrides = [*options.set, f"guard.mode={mode}", f"storage={storage}", f"name={mode}"]
            spec = JobSpec.load(options.spec, overrides)
            result = run_job(spec, console=Console())
            rows = read_jsonl(spec.job_dir / "metrics.jsonl")
            runs[label] = (result, [StepRecord.from_row(row) for row in rows if "action" in row])
    results = {label: result for label, (result, _) in runs.items()}
    tables = {EXPLOSION: _rows(results)}
    publish("explosion", tables, options.json, seeds=[spec.seed])
    if options.figure:
        _draw({label: rows for label, (_, rows) in runs.items()}, options.figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path, default=EXAMPLE)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _rows(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    metrics = sorted({name for result in results.values() for name in result["metrics"]})
    return [
        {
            "run": label,
            **{name: result["metrics"].get(name) for name in metrics},
            **{name: result[name] for name in SHOWN},
        }
        for label, result in results.items()
    ]


def _draw(runs: dict[str, list[StepRecord]], path: Path) -> None:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for label, rows in runs.items():
        losses = [min(r.loss, CEILING) if math.isfinite(r.loss) else math.nan for r in rows]
        style = "--" if MODES[label] == "off" else "-"
        axes.plot([r.attempt for r in rows], losses, style, label=label, linewidth=1.4)
        lost = next((r.attempt for r in rows if not math.isfinite(r.loss)), None)
        if lost is not None and label == "without":
            axes.annotate("the weights are NaN from here on", (lost, 8), color="C1")
    axes.set(xlabel="step attempt", ylabel="training loss", yscale="log")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
