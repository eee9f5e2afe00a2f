"""Which signal announces an explosion before the loss shows it, and how often is it wrong?

    PYTHONPATH=tests/benchmarks python tests/benchmarks/early_warning/bench_warnings.py [--quick | --further]
        [--keep FOLDER] [--json FILE]

Every run is logged once with all signals. A candidate warns above a threshold that gives at most one warning
in 10,000 steps of the healthy runs of the chosen networks and of the healthy zoo; the guard's own has its
constants. The networks held out had no part in any choice; with ``--further`` eleven that were made later.
With ``--keep`` logs stay, and are not made again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import progress, publish

from early_warning import acting, cost
from early_warning.candidates import OURS, RISES, candidates
from early_warning.log import Floats, Log
from early_warning.networks import TEXT, chosen
from early_warning.trainings import OTHER_SEED, SEED, Run, runs, train, zoo

ANNOUNCED, MISSED = "explosions announced", "explosions that the guard does not announce"
ACTED, COST = "what the guard changes in the runs held out that it warns of", "what the warning costs"
FACTOR, FACTOR_TEXT = 1.5, 1.25
"""From this multiple of its level on the loss has exploded. That of text seldom reaches 1.5 times: it ends at
the frequencies of the letters."""
FIRST = 40
"""What explodes before has no level: the rate is too high from the start (``guard.decide.start_rate``)."""
QUIET = 50
"""Steps after which the next warning is another one."""
MOST = 1 / 10_000
EARLY = 20
"""Steps before the explosion from which on a warning is early."""
SMALL = "mlp-ramp"


@dataclass(frozen=True, slots=True)
class Judged:
    """A log with the score of each candidate; ``crossed``: from where on the loss is far above its level."""

    log: Log
    scores: dict[str, Floats]
    healthy: bool
    chosen: bool
    crossed: int | None


def main() -> None:
    """Trains what is not kept, and publishes the table."""
    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        keep = options.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        wanted = {run.name: run for run in runs(quick=options.quick, later=options.further)}
        logs = gather(keep, wanted.values(), zoo_too=not (options.quick or options.further))
    judged = list(map(judge, logs))
    warned = {run.log.name for run in judged if not run.chosen and _lead(OURS, run, 0.0) is not None}
    if options.quick:
        warned = {run.log.name for run in judged if not run.healthy}
    progress(f"{len(warned)} runs again, under the guard")
    acted = acting.table([run for name, run in wanted.items() if name in warned], crossing)
    shown = {ANNOUNCED: table(judged), ACTED: acted}
    small = next((run for run in logs if run.name.startswith(SMALL)), None)
    if small is not None:
        shown[COST] = cost.table(small, wanted[small.name])
    if missed := missed_runs(judged):
        shown[MISSED] = missed
    publish("early warning", shown, options.json, seeds=[SEED, OTHER_SEED])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one explosion and one healthy run")
    parser.add_argument("--further", action="store_true", help="eleven networks of neither half instead")
    parser.add_argument("--keep", type=Path, help="folder of logs that were made; new ones are added")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def gather(keep: Path, wanted: Collection[Run], *, zoo_too: bool) -> list[Log]:
    """The logs of these runs, and of the healthy trainings of the guard's tests."""
    for number, run in enumerate(wanted, start=1):
        if not (path := keep / f"{run.name}.npz").exists():
            train(run).save(path)
            progress(f"{number} of {len(wanted)} runs")
    if zoo_too:
        zoo([SEED, OTHER_SEED], keep)
    healthy = sorted(keep.glob("zoo_*.npz")) if zoo_too else []
    return list(map(Log.read, [*(keep / f"{run.name}.npz" for run in wanted), *healthy]))


def judge(log: Log) -> Judged:
    """What each candidate says of a run."""
    zoo_run = log.name.startswith("zoo_")
    healthy = zoo_run or "-x1-" in log.name
    known = f"-s{SEED}-" in log.name if zoo_run else log.name.split("-")[0] in chosen()
    return Judged(log, candidates(log), healthy, known, None if healthy else crossing(log))


def crossing(log: Log) -> int | None:
    """The step from which on the loss stays above a multiple of its level: the lowest median of 50 steps so
    far, and at least a tenth of the first loss. None if it does so within the first ``FIRST`` steps."""
    factor = FACTOR_TEXT if log.name.split("-")[0] in TEXT else FACTOR
    losses = np.where(np.isfinite(log.loss), log.loss, 1e9)
    least, lowest = 0.1 * float(np.median(losses[:5])), np.inf
    for step in range(10, len(losses) - 8):
        lowest = min(lowest, float(np.median(losses[max(0, step - 50) : step])))
        after = (losses[step], np.median(losses[step : step + 5]), np.median(losses[step + 5 : step + 25]))
        if min(after) > factor * max(lowest, least):
            return step if step >= FIRST else None
    return len(losses) if losses[-1] > 1e6 else None


def table(judged: list[Judged]) -> list[dict[str, Any]]:
    """A row a candidate; the best first."""
    names = sorted({name for run in judged for name in run.scores})
    rows = [_row(name, judged) for name in names]
    return sorted(rows, key=lambda row: (-row["20 steps before"], -row["warned"]))


def _row(name: str, judged: list[Judged]) -> dict[str, Any]:
    healthy = [run for run in judged if run.healthy and run.chosen]
    threshold = 0.0 if name in (OURS, RISES) else _threshold(name, healthy)
    row: dict[str, Any] = {"signal": name}
    for part, known in (("", True), (", held out", False)):
        exploding = [run for run in judged if run.crossed is not None and run.chosen == known]
        healthy = [run for run in judged if run.healthy and run.chosen == known]
        leads = [lead for run in exploding if (lead := _lead(name, run, threshold)) is not None]
        steps = sum(len(run.log.loss) for run in healthy)
        false = sum(len(_warnings(run.scores[name], threshold)) for run in healthy)
        count = max(1, len(exploding))
        row |= {
            f"runs{part}": len(exploding),
            f"warned{part}": len(leads) / count,
            f"median lead{part}": statistics.median(leads) if leads else 0,
            f"20 steps before{part}": sum(lead >= EARLY for lead in leads) / count,
            f"false per 10,000{part}": 1e4 * false / max(1, steps),
        }
    return row


def missed_runs(judged: list[Judged]) -> list[dict[str, Any]]:
    """How fast the others explode, and which candidates announce them early."""
    healthy = [run for run in judged if run.healthy and run.chosen]
    thresholds = {name: _threshold(name, healthy) for name in judged[0].scores if name not in (OURS, RISES)}
    rows = []
    for run in judged:
        if run.crossed is None or _lead(OURS, run, 0.0) is not None:
            continue
        leads = {name: _lead(name, run, threshold) for name, threshold in thresholds.items()}
        early = [name for name, lead in leads.items() if lead is not None and lead >= EARLY]
        row = {
            "run": run.log.name,
            "explodes at": run.crossed,
            "steps of the rise": _rise(run.log, run.crossed),
        }
        rows.append({**row, "announced by": ", ".join(sorted(early)) or "none"})
    return rows


def _rise(log: Log, crossed: int) -> int:
    """Steps since the median of five losses was last within a tenth of its lowest before."""
    padded = np.concatenate([np.full(4, np.nan), log.loss[:crossed]])
    recent = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    lowest = min(float(np.median(log.loss[max(0, at - 50) : at])) for at in range(10, crossed + 1))
    return crossed - max(np.flatnonzero(recent <= 1.1 * lowest).tolist(), default=0)


def _threshold(name: str, healthy: list[Judged]) -> float:
    """The lowest with at most ``MOST`` warnings a step."""
    scores = [run.scores[name] for run in healthy]
    values = np.concatenate([score[np.isfinite(score)] for score in scores]) if scores else np.zeros(0)
    if not len(values):
        return np.inf
    allowed = max(1, int(MOST * sum(map(len, scores))))
    for threshold in np.quantile(values, 1 - np.append(np.logspace(-1.2, -5, 60), 0.0)).tolist():
        if sum(len(_warnings(score, threshold)) for score in scores) <= allowed:
            return float(threshold)
    return float(values.max())


def _warnings(score: Floats, threshold: float) -> list[int]:
    found, last = [], -QUIET - 1
    for step in np.flatnonzero(score > threshold).tolist():
        if step - last > QUIET:
            found.append(step)
        last = step
    return found


def _lead(name: str, run: Judged, threshold: float) -> int | None:
    before = _warnings(run.scores[name][: run.crossed], threshold)
    return None if not before or run.crossed is None else run.crossed - before[0]


if __name__ == "__main__":
    main()
