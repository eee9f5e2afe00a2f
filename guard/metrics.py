"""What the guard shows to Prometheus: totals and last values of one job, and how they are rendered.

`GuardMetrics` is plain Python, costs a few microseconds a step and belongs to whoever runs the loop. Its
`snapshot()` is cumulative and JSON-able, so it can be rendered in another process. `GuardCollector` renders
any number of snapshots (one a job) at scrape time. No label grows with the number of steps.
"""

import math
import re
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

ACTIONS = ("applied", "clipped", "skipped", "rolled_back")
SOURCES = ("memory", "disk")
SIGNALS = ("loss", "grad_norm", "update_norm")
VERDICTS = ("suspect", "spike", "nonfinite", "drift", "vanishing")
NONFINITE_SIGNALS = (*SIGNALS, "grad_norm_local", "layer_grad_norm")

# Name without the prefix: help, labels beside `job`.
GAUGES: dict[str, tuple[str, ...]] = {
    "grad_norm": ("Global gradient norm before clipping, last finite value.",),
    "grad_norm_local": ("Gradient norm of one rank before the all-reduce, last finite value.", "rank"),
    "layer_grad_norm": ("Gradient norm of one parameter, last finite value.", "layer"),
    "update_norm": ("Norm of the last parameter update, last finite value.",),
    "loss": ("Training loss, mean over ranks, last finite value.",),
    "clip_threshold": ("Gradient norm above which gradients are clipped; absent while nothing is.",),
    "clip_coefficient": ("Factor on the last gradient; 1 where it was not clipped.",),
    "learning_rate": ("Learning rate of the first parameter group.",),
    "gradient_noise_scale": ("Noise scale of the gradient in global batches; above 1 a larger batch pays.",),
    "regularization_strength": ("Strength of one regularization.", "kind"),
}
COUNTERS: dict[str, tuple[str, ...]] = {
    "steps": ("Attempted optimizer steps, by what the guard did.", "action"),
    "anomalies": ("Verdicts other than ok.", "signal", "verdict"),
    "nonfinite": ("NaN or infinite values seen in a signal.", "signal"),
    "rollbacks": ("Rollbacks, by where the state came from.", "source"),
    "steps_lost": ("Optimizer steps thrown away by rollbacks.",),
}
HISTOGRAMS = {
    "guard_seconds": "Time the guard adds to a step.",
    "rollback_seconds": "Duration of a rollback.",
}
GUARD_BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
ROLLBACK_BUCKETS = (1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

F = TypeVar("F", bound=Metric)
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class GuardMetrics:
    """Totals and last values of one job.

    A counter never goes back: `load_state_dict` keeps the larger of what is saved and what is here, so a
    rollback leaves the counters alone and a restart continues them. A gauge keeps its last *finite* value and
    `gradguard_nonfinite_total` counts the rest, because `NaN > x` is never true in an alert.

    `info` becomes the labels of `gradguard_job_info`. Safe to scrape while another thread steps.
    """

    def __init__(self, *, job: str = "", info: Mapping[str, str] | None = None) -> None:
        self.job = job
        self.info = _checked_info(info or {})
        self._lock = threading.Lock()
        self._created = time.time()
        self._values: dict[str, float] = {}
        self._keyed: dict[str, dict[str, float]] = {
            "grad_norm_local": {},
            "layer_grad_norm": {},
            "regularization_strength": {},
        }
        self._steps = dict.fromkeys(ACTIONS, 0)
        self._anomalies = {signal: dict.fromkeys(VERDICTS, 0) for signal in SIGNALS}
        self._rollbacks = dict.fromkeys(SOURCES, 0)
        self._nonfinite = dict.fromkeys(NONFINITE_SIGNALS, 0)
        self._steps_lost = 0
        self._guard_seconds = _Histogram(GUARD_BUCKETS)
        self._rollback_seconds = _Histogram(ROLLBACK_BUCKETS)

    def step(
        self,
        *,
        action: str,
        loss: float,
        grad_norm: float,
        clip_threshold: float | None,
        clip_coef: float,
        learning_rate: float,
        guard_seconds: float,
        update_norm: float | None = None,
        layers: Mapping[str, float] | None = None,
        local_norms: Sequence[float] | None = None,
        regularization: Mapping[str, float] | None = None,
    ) -> None:
        """Record one attempted step. `None` leaves the last value standing; a threshold of `None` (nothing is
        clipped at present) removes it. `local_norms` has one entry a rank; all NaN means not measured."""
        with self._lock:
            if action not in self._steps:
                raise ValueError(f"action must be one of {', '.join(ACTIONS)}; got {action!r}")
            self._steps[action] += 1
            self._signal("loss", loss)
            self._signal("grad_norm", grad_norm)
            if update_norm is not None:
                self._signal("update_norm", update_norm)
            self._threshold(clip_threshold)
            _keep_finite(self._values, "clip_coefficient", clip_coef)
            _keep_finite(self._values, "learning_rate", learning_rate)
            self._guard_seconds.observe(guard_seconds)
            if local_norms is not None and not all(map(math.isnan, local_norms)):
                self._ranks(local_norms)
            if layers is not None:
                self._signals("layer_grad_norm", layers)
            if regularization is not None:
                _update_finite(self._keyed["regularization_strength"], regularization)

    def noise_scale(self, ratio: float) -> None:
        """The gradient noise scale, in global batches."""
        with self._lock:
            _keep_finite(self._values, "gradient_noise_scale", ratio)

    def anomaly(self, *, signal: str, verdict: str) -> None:
        """Count one verdict that was not `ok`."""
        with self._lock:
            verdicts = self._anomalies.setdefault(signal, dict.fromkeys(VERDICTS, 0))
            verdicts[verdict] = verdicts.get(verdict, 0) + 1

    def rollback(self, *, source: str, seconds: float, steps_lost: int) -> None:
        """Count one rollback from `source` (`memory` or `disk`), how long it took and what it threw away."""
        with self._lock:
            if source not in self._rollbacks:
                raise ValueError(f"source must be one of {', '.join(SOURCES)}; got {source!r}")
            self._rollbacks[source] += 1
            self._steps_lost += steps_lost
            self._rollback_seconds.observe(seconds)

    def snapshot(self) -> dict[str, Any]:
        """Everything a scrape needs, as strict JSON: nothing in it is NaN or infinite."""
        return {"job": self.job, "info": dict(self.info), **self.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """Totals and last values. `created` (unix seconds) says when the totals began."""
        with self._lock:
            keyed = {name: dict(values) for name, values in self._keyed.items()}
            return {"created": self._created, "values": {**self._values, **keyed}, "totals": self._totals()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; a total that is already larger here stays."""
        with self._lock:
            totals = _larger(self._totals(), state["totals"])
            self._created = min(self._created, float(state["created"]))
            values = dict(state["values"])
            self._keyed = {name: dict(values.pop(name)) for name in self._keyed}
            self._values = values
            self._steps, self._anomalies = totals["steps"], totals["anomalies"]
            self._rollbacks, self._nonfinite = totals["rollbacks"], totals["nonfinite"]
            self._steps_lost = totals["steps_lost"]
            self._guard_seconds.load(totals["guard_seconds"])
            self._rollback_seconds.load(totals["rollback_seconds"])

    def register(self, registry: CollectorRegistry) -> "GuardCollector":
        """Serve this job on `registry`; returns the collector, to unregister it later. Several jobs of one
        process need one `GuardCollector` over all their snapshots, since a registry takes each name once."""
        collector = GuardCollector(lambda: [self.snapshot()])
        registry.register(collector)
        return collector

    def _signal(self, name: str, value: float) -> None:
        self._nonfinite[name] += not _keep_finite(self._values, name, value)

    def _signals(self, name: str, values: Mapping[str, float]) -> None:
        self._nonfinite[name] += _update_finite(self._keyed[name], values)

    def _ranks(self, local_norms: Sequence[float]) -> None:
        self._signals("grad_norm_local", {str(rank): norm for rank, norm in enumerate(local_norms)})
        for rank in self._keyed["grad_norm_local"].keys() - map(str, range(len(local_norms))):
            del self._keyed["grad_norm_local"][rank]

    def _threshold(self, value: float | None) -> None:
        if value is None or not math.isfinite(value):
            self._values.pop("clip_threshold", None)
        else:
            self._values["clip_threshold"] = float(value)

    def _totals(self) -> dict[str, Any]:
        return {
            "steps": dict(self._steps),
            "anomalies": {signal: dict(verdicts) for signal, verdicts in self._anomalies.items()},
            "rollbacks": dict(self._rollbacks),
            "nonfinite": dict(self._nonfinite),
            "steps_lost": self._steps_lost,
            "guard_seconds": self._guard_seconds.dump(),
            "rollback_seconds": self._rollback_seconds.dump(),
        }


class GuardCollector(Collector):
    """Renders the snapshots that `source()` returns at the time of the scrape; label `job` on all."""

    def __init__(self, source: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """The families without samples, so that registering does not call `source`."""
        return _Families().all()

    def collect(self) -> Iterable[Metric]:
        families = _Families()
        for snapshot in self._source():
            families.add(snapshot)
        return families.all()


def carry_totals(previous: Mapping[str, Any] | None, latest: Mapping[str, Any]) -> dict[str, Any]:
    """`latest`, with no total below `previous` when both are snapshots of the same run (same `created`).

    A job that restarts from a checkpoint counts again what it lost; without this Prometheus would take the
    smaller total for a counter reset and count everything before it twice.
    """
    if previous is None or previous["created"] != latest["created"]:
        return dict(latest)
    return {**latest, "totals": _larger(previous["totals"], latest["totals"])}


class _Families:
    """The metric families of the guard, filled one snapshot at a time."""

    def __init__(self) -> None:
        self.gauges = {name: _family(GaugeMetricFamily, name, *about) for name, about in GAUGES.items()}
        self.counters = {name: _family(CounterMetricFamily, name, *about) for name, about in COUNTERS.items()}
        self.histograms = {
            name: _family(HistogramMetricFamily, name, text) for name, text in HISTOGRAMS.items()
        }
        self.info = InfoMetricFamily(
            "gradguard_job", "What runs: versions, model, world size.", labels=["job"]
        )

    def add(self, snapshot: Mapping[str, Any]) -> None:
        """What a pusher of another version has not, or has on top, is left out."""
        job, values, totals = snapshot["job"], snapshot["values"], snapshot["totals"]
        self.info.add_metric([job], snapshot["info"])
        for name in self.gauges.keys() & values.keys():
            for labels, value in _leaves(values[name]):
                self.gauges[name].add_metric([job, *labels], value)
        for name in self.counters.keys() & totals.keys():
            for labels, total in _leaves(totals[name]):
                self.counters[name].add_metric([job, *labels], total)
        for name in self.histograms.keys() & totals.keys():
            buckets = list(totals[name]["buckets"].items())
            self.histograms[name].add_metric([job], buckets, totals[name]["sum"])

    def all(self) -> list[Metric]:
        families = (self.gauges, self.counters, self.histograms)
        return [self.info, *(family for named in families for family in named.values())]


class _Histogram:
    """Counts per bucket; the last bucket takes what lies above all bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._edges = [floatToGoString(bound) for bound in (*bounds, math.inf)]
        self._counts = [0] * len(self._edges)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def dump(self) -> dict[str, Any]:
        return {"buckets": dict(zip(self._edges, accumulate(self._counts), strict=True)), "sum": self._sum}

    def load(self, state: Mapping[str, Any]) -> None:
        cumulative = list(accumulate((state["buckets"][edge] for edge in self._edges), max))
        self._counts = [after - before for before, after in pairwise([0, *cumulative])]
        self._sum = float(state["sum"])


def _family(kind: Callable[..., F], name: str, text: str, *labels: str) -> F:
    return kind(f"gradguard_{name}", text, labels=["job", *labels])


def _leaves(value: Any, *labels: str) -> Iterator[tuple[tuple[str, ...], float]]:
    """The numbers of a nested mapping, each with the keys that lead to it."""
    if isinstance(value, Mapping):
        for label, inner in value.items():
            yield from _leaves(inner, *labels, label)
    else:
        yield labels, value


def _keep_finite(values: dict[str, float], name: str, value: float) -> bool:
    finite = math.isfinite(value)
    if finite:
        values[name] = float(value)
    return finite


def _update_finite(values: dict[str, float], latest: Mapping[str, float]) -> int:
    """Take the finite entries of `latest`; returns how many were not."""
    if math.isfinite(sum(latest.values())):
        values.update(latest)
        return 0
    return sum(not _keep_finite(values, name, value) for name, value in latest.items())


def _larger(old: Any, new: Any) -> Any:
    """The larger of two totals, leaf by leaf; what only one of them has is taken from it."""
    if isinstance(old, Mapping):
        return {
            key: _larger(old.get(key, new.get(key)), new.get(key, old.get(key))) for key in {**old, **new}
        }
    return max(old, new)


def _checked_info(info: Mapping[str, str]) -> dict[str, str]:
    for name in info:
        if name == "job" or not _LABEL_NAME.fullmatch(name):
            raise ValueError(f"info has the name {name!r}: use letters, digits and _, and not 'job'")
    return {name: str(value) for name, value in info.items()}
