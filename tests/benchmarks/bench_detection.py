"""Scores the detector, and others' rebuilt from their descriptions, on a folder of labelled training logs.

    python tests/benchmarks/bench_detection.py [DIR] [--json FILE]

DIR (default: $GRADGUARD_TRACES) holds `index.csv` (name, kind: calm, spiky or snippet; interval),
`labels.csv` (trace, start_step, end_step, label) and a NAME.csv (step, loss, grad_norm) for each log.

A false alarm is an episode of alarms (less than 10 rows apart) outside every labelled interval, with 2 rows
of slack before and 5 after, past the warm-up; it is counted per 1,000 rows of calm logs. A `spike` or `nan`
interval is caught by an alarm from one row before its start to its end; the delay is counted in rows.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from measure import publish

from guard.config import DetectConfig
from guard.decide.detector import SpikeDetector
from guard.decide.replay import ALARMS
from guard.logs.log import Row
from guard.logs.trace import TraceReader
from guard.observe.robust_window import RobustWindow

Decider = Callable[[float | None, float | None], str]
"""From loss and gradient norm of a step to `ok`, `suspect` or `alarm`."""
Interval = tuple[float, float, str]
TITLE = "detection on real training logs"
EPISODE_ROWS = 10
CAUGHT = ("spike", "nan")


@dataclass(frozen=True)
class Trace:
    """One log and its labels."""

    name: str
    kind: str
    interval: int
    rows: list[Row]
    labels: list[Interval]

    @property
    def scored(self) -> bool:
        return self.kind != "snippet" and all(label != "chaotic" for _, _, label in self.labels)

    @property
    def warmup_rows(self) -> int:
        return 200 if self.interval == 1 and len(self.rows) > 2000 else 30


@dataclass
class Score:
    """Counts over all logs; index 0 is for logs of every step, 1 for sampled ones."""

    false_alarms: list[int] = field(default_factory=lambda: [0, 0])
    suspects: list[int] = field(default_factory=lambda: [0, 0])
    rows: list[int] = field(default_factory=lambda: [0, 0])
    false_in_spiky: int = 0
    missed: list[tuple[str, float]] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        per_step, sampled = (1000 * f / max(1, n) for f, n in zip(self.false_alarms, self.rows, strict=True))
        delays = sorted(self.delays)
        return {
            "false_alarms": self.false_alarms,
            "false_alarms_per_1000_steps": round(per_step, 3),
            "false_alarms_per_1000_sampled": round(sampled, 3),
            "suspects_per_1000": [
                round(1000 * s / max(1, n), 3) for s, n in zip(self.suspects, self.rows, strict=True)
            ],
            "false_alarms_in_spiky": self.false_in_spiky,
            "caught": len(delays),
            "intervals": len(delays) + len(self.missed),
            "missed": self.missed,
            "delay_median": median(delays) if delays else None,
            "delay_p90": quantiles(delays, n=10, method="inclusive")[-1] if len(delays) > 1 else None,
        }


def lacking(folder: Path) -> str:
    """What a folder of labelled logs lacks; empty if nothing."""
    missing = [name for name in ("index.csv", "labels.csv") if not (folder / name).is_file()]
    return f"{folder} has no {' and no '.join(missing)}" if missing else ""


def load(folder: Path) -> list[Trace]:
    """All logs of a folder."""
    labels: dict[str, list[Interval]] = {}
    for entry in _records(folder / "labels.csv"):
        interval = (float(entry["start_step"]), float(entry["end_step"]), entry["label"])
        labels.setdefault(entry["trace"], []).append(interval)
    return [
        Trace(
            name=entry["name"],
            kind=entry["kind"],
            interval=int(entry["interval"]),
            rows=list(TraceReader(folder / f"{entry['name']}.csv")),
            labels=labels.get(entry["name"], []),
        )
        for entry in _records(folder / "index.csv")
    ]


def _records(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def score(traces: Iterable[Trace], detector: Callable[[], Decider]) -> Score:
    """Shows each scored log to a new detector."""
    total = Score()
    for trace in traces:
        if trace.scored:
            observe = detector()
            said = [observe(row.loss, row.grad_norm) for row in trace.rows]
            _add(total, trace, said)
    return total


def _add(total: Score, trace: Trace, said: list[str]) -> None:
    alarms = [i for i, word in enumerate(said) if word == "alarm"]
    false = sum(
        1
        for episode in episodes(alarms)
        if episode[0] >= trace.warmup_rows and not any(_excused(trace, i) for i in episode)
    )
    if trace.kind == "calm":
        sampled = int(trace.interval > 1)
        total.false_alarms[sampled] += false
        total.suspects[sampled] += said[trace.warmup_rows :].count("suspect")
        total.rows[sampled] += len(trace.rows) - trace.warmup_rows
    else:
        total.false_in_spiky += false
    steps = [trace.rows[i].step for i in alarms]
    for start, end, label in trace.labels:
        if label in CAUGHT:
            caught = next((s for s in steps if start - trace.interval <= s <= end), None)
            if caught is None:
                total.missed.append((trace.name, start))
            else:
                total.delays.append(max(0.0, (caught - start) / trace.interval))


def episodes(alarms: Iterable[int]) -> list[list[int]]:
    """Alarms that are less than ten rows apart are one episode."""
    found: list[list[int]] = []
    for row in alarms:
        if found and row - found[-1][-1] < EPISODE_ROWS:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _excused(trace: Trace, row: int) -> bool:
    step, interval = trace.rows[row].step, trace.interval
    return any(start - 2 * interval <= step <= end + 5 * interval for start, end, _ in trace.labels)


def ours(config: DetectConfig | None = None) -> Decider:
    """GradGuard's detector."""
    observe = SpikeDetector(config).observe

    def detector(loss: float | None, norm: float | None) -> str:
        kind = observe(loss, norm).kind
        return "alarm" if kind in ALARMS else "suspect" if kind == "suspect" else "ok"

    return detector


def z_score(window: int, sigmas: float, *, least: int, norm_too: bool) -> Decider:
    """Above mean + sigmas x deviation of the last values, all of which are recorded, outliers as well."""
    seen: tuple[deque[float], deque[float]] = (deque(maxlen=window), deque(maxlen=window))

    def detector(loss: float | None, norm: float | None) -> str:
        alarm = False
        for value, values in zip((loss, norm if norm_too else None), seen, strict=True):
            if value is None:
                continue
            if len(values) >= least:
                mean = fmean(values)
                alarm |= not value <= mean + sigmas * _deviation(values, mean)
            values.append(value)
        return "alarm" if alarm else "ok"

    return detector


def _deviation(values: Collection[float], mean: float) -> float:
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def running_mean(window: int, rtol: float) -> Decider:
    """Not finite, or above the mean of the last accepted losses by a multiple of it."""
    accepted: deque[float] = deque(maxlen=window)

    def detector(loss: float | None, norm: float | None) -> str:
        if loss is None:
            return "ok"
        if not math.isfinite(loss):
            return "alarm"
        if accepted and loss - fmean(accepted) > rtol * abs(fmean(accepted)):
            return "alarm"
        accepted.append(loss)
        return "ok"

    return detector


def ema_norm(sigmas: float, decay: float = 0.97, warmup: int = 25) -> Decider:
    """z-score of the norm against exponential averages, to which an outlier adds only its clipped value."""
    first: list[float] = []
    state: dict[str, float] = {}

    def detector(loss: float | None, norm: float | None) -> str:
        if norm is None or not math.isfinite(norm):
            return "ok" if norm is None else "alarm"
        if not state:
            first.append(norm)
            if len(first) >= warmup:
                mean = fmean(first)
                state.update(mean=mean, variance=_deviation(first, mean) ** 2)
            return "ok"
        deviation = math.sqrt(state["variance"])
        alarm = norm - state["mean"] > sigmas * deviation
        kept = state["mean"] + sigmas * deviation if alarm else norm
        state["variance"] = decay * state["variance"] + (1 - decay) * (kept - state["mean"]) ** 2
        state["mean"] = decay * state["mean"] + (1 - decay) * kept
        return "alarm" if alarm else "ok"

    return detector


def median_ratio(window: int, ratio: float) -> Decider:
    """Not finite, or above a multiple of the median of the last finite losses."""
    seen = RobustWindow(window)

    def detector(loss: float | None, norm: float | None) -> str:
        if loss is None or not math.isfinite(loss):
            return "ok" if loss is None else "alarm"
        alarm = len(seen) >= 10 and loss > ratio * seen.median
        seen.push(loss)
        return "alarm" if alarm else "ok"

    return detector


def median_mad(window: int, k: float, floor: float, *, rows: int) -> Decider:
    """k deviations (MAD) and a share of the median above the accepted losses, in N of three rows."""
    accepted = RobustWindow(window)
    recent: deque[bool] = deque(maxlen=3)

    def detector(loss: float | None, norm: float | None) -> str:
        if loss is None or not math.isfinite(loss):
            return "ok" if loss is None else "alarm"
        outlier = False
        if len(accepted) >= 10:
            middle, mad = accepted.median_mad()
            outlier = loss - middle > max(k * 1.4826 * mad, floor * abs(middle))
        recent.append(outlier)
        if not outlier:
            accepted.push(loss)
            return "ok"
        return "alarm" if sum(recent) >= rows else "suspect"

    return detector


DETECTORS: dict[str, Callable[[], Decider]] = {
    "GradGuard": ours,
    "z > 5 on loss, mean/std of 128 (llm.c)": lambda: z_score(128, 5, least=128, norm_too=False),
    "skip-step, 6 sigma, loss or norm": lambda: z_score(128, 6, least=64, norm_too=True),
    "running mean of 10, rtol 2 (Lightning)": lambda: running_mean(10, 2),
    "z > 2.5 on norm, EMA (ZClip's test)": lambda: ema_norm(2.5),
    "loss > 1.5 x median of 50": lambda: median_ratio(50, 1.5),
    "median/MAD of 100, k 8, floor 10 %, one row": lambda: median_mad(100, 8, 0.1, rows=1),
    "the same, two of three rows": lambda: median_mad(100, 8, 0.1, rows=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dir", nargs="?", type=Path, default=os.environ.get("GRADGUARD_TRACES"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.dir is None:
        print("no folder of training logs: give one, or set GRADGUARD_TRACES")
        return
    if problem := lacking(Path(options.dir)):
        parser.error(problem)
    traces = load(Path(options.dir))
    scores = {name: score(traces, detector).to_dict() for name, detector in DETECTORS.items()}
    publish("detection", {TITLE: _rows(scores), "the detector alone": [speed(traces)]}, options.json)


def speed(traces: Iterable[Trace]) -> dict[str, float]:
    """CPU time of the detector alone over all logs."""
    rows = [(row.loss, row.grad_norm) for trace in traces for row in trace.rows]
    best = math.inf
    for _ in range(3):
        observe = SpikeDetector().observe
        started = time.process_time()
        for loss, norm in rows:
            observe(loss, norm)
        best = min(best, time.process_time() - started)
    return {"rows_per_second": round(len(rows) / best), "microseconds": round(1e6 * best / len(rows), 2)}


def _rows(scores: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "detector": name,
            "false alarms a 1,000 steps": found["false_alarms_per_1000_steps"],
            "a 1,000 sampled rows": found["false_alarms_per_1000_sampled"],
            "caught": f"{found['caught']}/{found['intervals']}",
            "delay, median": found["delay_median"],
            "delay, p90": found["delay_p90"],
            "suspects a 1,000 steps": found["suspects_per_1000"][0],
        }
        for name, found in scores.items()
    ]


if __name__ == "__main__":
    main()
