"""What the guard counts: totals that only grow, and how the totals of two snapshots are joined.

A snapshot of totals is a nested mapping of numbers, as in the snapshots of `GuardMetrics`.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client.utils import floatToGoString

from guard.records import Action, Kind, Signal, Source

if TYPE_CHECKING:
    from guard.types import StepReport

ACTIONS: tuple[str, ...] = get_args(Action)
SOURCES: tuple[str, ...] = get_args(Source)
SIGNALS: tuple[str, ...] = get_args(Signal)
VERDICTS: tuple[str, ...] = get_args(Kind)[1:]
"""Those that are anomalous."""

GUARD_BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
ROLLBACK_BUCKETS = (1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """Counts per bucket; the last bucket counts what is above all bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._edges = [floatToGoString(bound) for bound in (*bounds, math.inf)]
        self._counts = [0] * len(self._edges)
        self.sum = 0.0
        """Of all values counted."""

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def dump(self) -> dict[str, Any]:
        """Cumulative counts by upper bound, and the sum of the values."""
        return {"buckets": dict(zip(self._edges, accumulate(self._counts), strict=True)), "sum": self.sum}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `dump`."""
        cumulative = list(accumulate((state["buckets"][edge] for edge in self._edges), max))
        self._counts = [after - before for before, after in pairwise([0, *cumulative])]
        self.sum = float(state["sum"])


class Totals:
    """What the guard has done and found since the training began; ``GradientGuard.totals``.

    They survive a rollback and, in the guard's state, a restart. Safe to read while another thread steps.
    """

    def __init__(self) -> None:
        self.steps = dict.fromkeys(ACTIONS, 0)
        """Attempts, by what the guard did."""
        self.anomalies = {signal: dict.fromkeys(VERDICTS, 0) for signal in SIGNALS}
        """Anomalous attempts, by signal and verdict; those that were corrected in time too."""
        self.incidents = 0
        """Entries of the journal: a condition that lasts is one, but an anomaly at each attempt."""
        self.changes = 0
        """Changes on purpose that were announced."""
        self.qk_clips = 0
        """Layers whose queries and keys were rescaled, each time."""
        self.rollbacks = dict.fromkeys(SOURCES, 0)
        self.steps_lost = 0
        """Optimizer steps that rollbacks discarded."""
        self.hardware_faults = {"unknown": 0}
        """Batches that gave another result when computed again, and findings of damaged memory, by rank."""
        self.dropped_micro_batches = 0
        self.excluded_ranks = 0
        """Parts of ranks whose data stays bad, each without which a batch was applied."""
        self.excluded_samples = 0
        """Bad samples, each without which its batch was applied."""
        self.guard_seconds = Histogram(GUARD_BUCKETS)
        self.rollback_seconds = Histogram(ROLLBACK_BUCKETS)
        self._lock = threading.Lock()

    @property
    def attempts(self) -> int:
        return sum(self.steps.values())

    @property
    def skips(self) -> int:
        return self.steps["skipped"]

    def observe(self, report: StepReport) -> None:
        """Counts one attempt.

        Raises:
            ValueError: its action is unknown; nothing is counted.
        """
        if report.action not in self.steps:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}; got {report.action!r}")
        with self._lock:
            self.steps[report.action] += 1
            self.guard_seconds.observe(report.guard_seconds)
            self.dropped_micro_batches += report.dropped_micro_batches
            self.excluded_ranks += len(report.excluded_ranks)
            self.excluded_samples += len(report.excluded_samples)
            for rank in report.faulty_ranks:
                name = str(rank) if rank >= 0 else "unknown"
                self.hardware_faults[name] = self.hardware_faults.get(name, 0) + 1
            if report.anomaly is not None:
                verdicts = self.anomalies.setdefault(report.anomaly.signal, dict.fromkeys(VERDICTS, 0))
                verdicts[report.anomaly.kind] = verdicts.get(report.anomaly.kind, 0) + 1
            if report.incident is not None and report.rolled_back_to is not None:
                self.rollbacks[report.incident.source or "memory"] += 1
                self.steps_lost += report.incident.steps_lost or 0
                self.rollback_seconds.observe(report.incident.seconds or 0.0)

    def state_dict(self) -> dict[str, Any]:
        """All totals as plain numbers, under the names of their metrics."""
        with self._lock:
            return self._dump()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; a total that is already larger here stays."""
        with self._lock:
            totals = larger(self._dump(), state)
            self.steps, self.anomalies = totals["steps"], totals["anomalies"]
            self.rollbacks, self.steps_lost = totals["rollbacks"], totals["steps_lost"]
            self.hardware_faults = totals["hardware_faults"]
            self.incidents, self.changes = totals["incidents"], totals["changes"]
            self.qk_clips = totals["qk_clips"]
            self.dropped_micro_batches = totals["micro_batches_dropped"]
            self.excluded_ranks = totals["rank_exclusions"]
            self.excluded_samples = totals["sample_exclusions"]
            self.guard_seconds.load(totals["guard_seconds"])
            self.rollback_seconds.load(totals["rollback_seconds"])

    def _dump(self) -> dict[str, Any]:
        return {
            "attempts": self.attempts,
            "steps": dict(self.steps),
            "anomalies": {signal: dict(verdicts) for signal, verdicts in self.anomalies.items()},
            "incidents": self.incidents,
            "changes": self.changes,
            "qk_clips": self.qk_clips,
            "rollbacks": dict(self.rollbacks),
            "steps_lost": self.steps_lost,
            "hardware_faults": dict(self.hardware_faults),
            "micro_batches_dropped": self.dropped_micro_batches,
            "rank_exclusions": self.excluded_ranks,
            "sample_exclusions": self.excluded_samples,
            "guard_seconds": self.guard_seconds.dump(),
            "rollback_seconds": self.rollback_seconds.dump(),
        }


def carry_totals(previous: Mapping[str, Any] | None, latest: Mapping[str, Any]) -> dict[str, Any]:
    """`latest`, with no total below `previous` when both are snapshots of the same run (same `created`).

    A smaller total would be a counter reset to Prometheus, which would count everything before it twice.
    """
    if previous is None or previous["created"] != latest["created"]:
        return dict(latest)
    return {**latest, "totals": larger(previous["totals"], latest["totals"])}


def larger(old: Any, new: Any) -> Any:
    """The larger of two totals, leaf by leaf; what only one of them has is taken from it."""
    return _merged(old, new, max)


def shortfall(old: Any, new: Any) -> Any:
    """By how much each total of `new` is below that of `old`; 0 where it is not."""
    return _merged(old, new, lambda before, after: max(before - after, 0))


def added(totals: Any, more: Any) -> Any:
    """The sum of two totals, leaf by leaf."""
    return _merged(totals, more, lambda one, other: one + other)


def _merged(old: Any, new: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Both, leaf by leaf; a leaf or a branch that one of them lacks is 0 there."""
    if isinstance(old, Mapping) or isinstance(new, Mapping):
        old, new = old or {}, new or {}
        return {key: _merged(old.get(key, 0), new.get(key, 0), join) for key in {**old, **new}}
    return join(old, new)
