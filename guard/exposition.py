"""How snapshots of `GuardMetrics` become Prometheus' metric families, at the time of a scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

# Name without the prefix: help, labels beside `job`.
GAUGES: dict[str, tuple[str, ...]] = {
    "grad_norm": ("Global gradient norm before clipping, last finite value.",),
    "grad_norm_local": ("Gradient norm of one rank before the all-reduce, last finite value.", "rank"),
    "layer_grad_norm": ("Gradient norm of one parameter, last finite value.", "layer"),
    "update_norm": ("Norm of the last parameter update, last finite value.",),
    "buffer_jump": ("How far the last forward moved the buffers, in units of their norms; last finite.",),
    "loss": ("Training loss, mean over ranks, last finite value.",),
    "clip_threshold": ("Gradient norm above which gradients are clipped; absent while nothing is.",),
    "clip_coefficient": ("Factor on the last gradient; 1 where it was not clipped.",),
    "learning_rate": ("Learning rate of the first parameter group.",),
    "gradient_noise_scale": ("Noise scale of the gradient in global batches; above 1 a larger batch pays.",),
    "regularization_strength": ("Strength of one regularization.", "kind"),
    "checkpoint_last_step": ("Optimizer step of the checkpoint written last.",),
    "checkpoint_last_timestamp_seconds": ("When the last checkpoint was written, unix time.",),
    "checkpoint_bytes": ("Size of the checkpoint written last.",),
}
COUNTERS: dict[str, tuple[str, ...]] = {
    "steps": ("Attempted optimizer steps, by what the guard did.", "action"),
    "anomalies": ("Verdicts other than ok.", "signal", "verdict"),
    "nonfinite": ("NaN or infinite values seen in a signal.", "signal"),
    "rollbacks": ("Rollbacks, by where the state came from.", "source"),
    "steps_lost": ("Optimizer steps thrown away by rollbacks.",),
    "hardware_faults": ("Batches that gave another result when they were computed again.", "rank"),
    "micro_batches_rejected": ("Micro-batches left out of their accumulation window.",),
    "checkpoints": ("Checkpoints, by what became of them.", "outcome"),
    "checkpoint_failures": ("Checkpoints that could not be written.",),
}
HISTOGRAMS = {
    "guard_seconds": "Time the guard adds to a step.",
    "rollback_seconds": "Duration of a rollback.",
    "checkpoint_seconds": "Time from the copy of the state until its checkpoint is on disk.",
    "checkpoint_blocked_seconds": "Time for which training waits while the state is copied.",
}
F = TypeVar("F", bound=Metric)


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


def _family(kind: Callable[..., F], name: str, text: str, *labels: str) -> F:
    return kind(f"gradguard_{name}", text, labels=["job", *labels])


def _leaves(value: Any, *labels: str) -> Iterator[tuple[tuple[str, ...], float]]:
    """The numbers of a nested mapping, each with the keys that lead to it."""
    if isinstance(value, Mapping):
        for label, inner in value.items():
            yield from _leaves(inner, *labels, label)
    else:
        yield labels, value
