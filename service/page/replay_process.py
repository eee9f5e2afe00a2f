"""Reads one log, with little memory and time, and prints the verdicts as JSON."""

import json
import math
import resource
import sys
from collections.abc import Sequence
from typing import Any

from guard.decide.advice import blindness, taken_for, would
from guard.decide.replay import ReplayResult, replay_rows
from guard.logs.log import Row, TraceError
from guard.logs.trace import TraceReader
from guard.rows import strict

MOST_BYTES = 2 << 30
MOST_SECONDS = 50
POINTS = 2000
MOST_ALARMS = 500


def main() -> int:
    """Reads the log that the first argument names; the second one has the columns, as JSON."""
    _limit()
    path, columns = sys.argv[1], json.loads(sys.argv[2])
    reader = TraceReader(path, **columns)
    try:
        rows = list(reader)
    except (TraceError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    result = replay_rows(rows)
    result.kind, result.columns = reader.kind, reader.columns
    print(json.dumps(document(rows, result), allow_nan=False))
    return 0


def document(rows: Sequence[Row], result: ReplayResult) -> dict[str, Any]:
    """The log, thinned, and what the detector made of it."""
    entries = sorted([*result.alarms, *result.trends], key=lambda entry: entry["step"])
    shown = [{**entry, "would": would(result, entry)} for entry in entries[:MOST_ALARMS]]
    columns = {name: [getattr(row, name) for row in thinned(rows)] for name in Row._fields}
    return {
        "taken_for": taken_for(result),
        "blindness": blindness(result.alarm_factor),
        "rows": result.rows,
        "suspects": result.suspects,
        "alarms": len(result.alarms),
        "trends": len(result.trends),
        "shown": strict(shown),
        "columns": strict(columns),
    }


def thinned(rows: Sequence[Row]) -> list[Row]:
    """About ``POINTS`` rows: of each stretch the first, and the extremes of both signals."""
    stretch = max(1, math.ceil(5 * len(rows) / POINTS))
    if stretch < 5:
        return list(rows)
    kept: list[Row] = []
    for start in range(0, len(rows), stretch):
        part = range(start, min(start + stretch, len(rows)))
        chosen = {start}
        for name in ("loss", "grad_norm"):
            chosen |= {of(part, key=lambda i: _place(getattr(rows[i], name))) for of in (min, max)}
            chosen |= set([i for i in part if _odd(getattr(rows[i], name))][:1])
        kept += [rows[i] for i in sorted(chosen)]
    return kept


def _place(value: float | None) -> float:
    return 0.0 if value is None or math.isnan(value) else value


def _odd(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)


def _limit() -> None:
    """What a log made to do harm can use: memory, seconds, and no files."""
    for kind, most in (
        (resource.RLIMIT_AS, MOST_BYTES),
        (resource.RLIMIT_CPU, MOST_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    sys.exit(main())
