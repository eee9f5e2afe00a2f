"""The same training with the same faults, once with the guard and once without.

    python tests/benchmarks/bench_explosion.py [SPEC] [--set FIELD=VALUE ...] [--figure FILE] [--json FILE]

Prints a table and JSON; the figure shows both loss curves. The picture of the README:

    python tests/benchmarks/bench_explosion.py --figure tests/benchmarks/results/explosion.svg
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from measure import progress, publish
from pictures import explosion_picture
from render import EXPLOSION
from rich.console import Console

from guard.records import StepRecord
from jobs.cluster.driver import run_job
from jobs.run_dir.jsonl import iter_jsonl
from jobs.spec.job_spec import JobSpec

MODES = {"with the guard": "exact", "without": "off"}
EXAMPLE = Path(__file__).parents[2] / "jobs" / "examples" / "fashion.yaml"
SHOWN = ("steps", "anomalies", "skips", "rollbacks", "steps_lost", "guard_share", "seconds")
LABELS = {
    "nan_loss": "rank {rank}: loss NaN",
    "lr_spike": "learning rate x {factor:,.0f}",
    "scaled_gradient": "rank {rank}: gradient x {factor:,.0f}",
}


def main() -> None:
    options = _options()
    runs = {}
    with tempfile.TemporaryDirectory() as storage:
        for label, mode in MODES.items():
            progress(label)
            overrides = [*options.set, f"guard.mode={mode}", f"storage={storage}", f"name={mode}"]
            spec = JobSpec.load(options.spec, overrides)
            result = run_job(spec, console=Console())
            rows = [*iter_jsonl(spec.job_dir / "metrics.jsonl")]
            runs[label] = (result, [StepRecord.from_row(row) for row in rows if "action" in row])
    results = {label: result for label, (result, _) in runs.items()}
    tables = {EXPLOSION: _rows(results)}
    publish("explosion", tables, options.json, seeds=[spec.seed])
    if options.figure:
        explosion_picture({label: rows for label, (_, rows) in runs.items()}, _labels(spec), options.figure)


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


def _labels(spec: JobSpec) -> list[str]:
    """The faults of a spec in the order in which they strike, as labels of the picture."""
    faults = sorted(spec.faults, key=lambda fault: fault.step)
    return [LABELS.get(f.kind, f.kind).format(rank=f.rank, factor=f.factor) for f in faults]


if __name__ == "__main__":
    main()
