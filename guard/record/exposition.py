"""How snapshots of `GuardMetrics` become Prometheus' metric families and text, at the time of a scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from guard.records import GAUGES

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: `name` is its key in a snapshot, `labels` come after `job`.

    A gauge is in a snapshot's `values`, a counter or histogram in its `totals`, an info in `info`.
    """

    kind: Literal["gauge", "counter", "histogram", "info"]
    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """The name in a scrape; a histogram's has `_bucket`, `_sum` and `_count` after it."""
        suffix = {"counter": "_total", "info": "_info"}.get(self.kind, "")
        return f"gradguard_{self.name}{suffix}"


FAMILIES = (
    Family("info", "job", "What runs: model, optimizer, mode, world size."),
    Family("gauge", "job_created_timestamp_seconds", "When the totals of the job began, unix time."),
    *(Family("gauge", *gauge) for gauge in GAUGES.values()),
    Family(
        "gauge", "grad_norm_local", "Gradient norm of one rank before the all-reduce, last finite.", ("rank",)
    ),
    Family("gauge", "grad_norm_local_median", "Lower median over all ranks of the local gradient norms."),
    Family(
        "gauge", "layer_grad_norm", "Gradient norm of one parameter or group, last finite value.", ("layer",)
    ),
    Family("gauge", "clip_threshold", "Norm above which gradients are clipped; absent while nothing is."),
    Family("gauge", "gradient_noise_scale", "Noise scale in global batches; above 1 a larger batch pays."),
    Family("gauge", "evaluation", "A metric of the last evaluation, last finite value.", ("metric",)),
    Family("gauge", "attempt_seconds", "Mean of the last attempts: all, and the wait for data.", ("part",)),
    Family("gauge", "gpu_memory_bytes", "GPU memory of rank 0: allocated, reserved, peak, total.", ("kind",)),
    Family("gauge", "gpu_utilization", "Share of the time in which the GPU of rank 0 computed."),
    Family("gauge", "gpu_peak_bytes", "Most GPU memory allocated, as of the last evaluation.", ("rank",)),
    Family("gauge", "gpu_mean_utilization", "Mean GPU utilization, as of the last evaluation.", ("rank",)),
    Family("gauge", "regularization_strength", "Strength of one regularization.", ("kind",)),
    Family("gauge", "steps_accepted", "Optimizer steps that stand; a rollback sets it back."),
    Family("gauge", "samples_accepted", "Samples in the steps that stand; a rollback sets it back."),
    Family("gauge", "tokens_accepted", "Tokens in the steps that stand; a rollback sets it back."),
    Family("gauge", "rollback_budget", "Rollbacks that are allowed within the budget's window."),
    Family("gauge", "rollback_budget_left", "Rollbacks that the budget still allows at present."),
    Family("gauge", "checkpoint_last_step", "Optimizer step of the checkpoint written last."),
    Family("gauge", "checkpoint_last_timestamp_seconds", "When it was written, unix time."),
    Family("gauge", "checkpoint_bytes", "Size of the checkpoint written last."),
    Family("counter", "attempts", "Attempted optimizer steps, whatever became of them."),
    Family("counter", "samples", "Samples in all attempts, those of rolled-back steps too."),
    Family("counter", "tokens", "Tokens in all attempts, those of rolled-back steps too."),
    Family("counter", "steps", "Attempted optimizer steps, by what the guard did.", ("action",)),
    Family("counter", "anomalies", "Attempts in which anything was wrong.", ("signal", "verdict")),
    Family("counter", "nonfinite", "NaN or infinite values seen in a signal.", ("signal",)),
    Family("counter", "rollbacks", "Rollbacks, by where the state came from.", ("source",)),
    Family("counter", "steps_lost", "Optimizer steps discarded by rollbacks."),
    Family(
        "counter",
        "hardware_faults",
        "Batches that gave another result when computed again; tensors found damaged in memory.",
        ("rank",),
    ),
    Family("counter", "micro_batches_dropped", "Micro-batches dropped from their accumulation window."),
    Family("counter", "rank_exclusions", "Ranks excluded from a batch because their data stays bad."),
    Family("counter", "sample_exclusions", "Bad samples without which a batch was applied."),
    Family("counter", "qk_clips", "Layers whose queries and keys were rescaled, each time."),
    Family("counter", "checkpoints", "Checkpoints, by what became of them.", ("outcome",)),
    Family("counter", "checkpoint_failures", "Checkpoints that could not be written."),
    Family("histogram", "guard_seconds", "Time the guard adds to a step."),
    Family("histogram", "rollback_seconds", "Duration of a rollback."),
    Family("histogram", "checkpoint_seconds", "Time from the copy of the state until it is on disk."),
    Family("histogram", "checkpoint_blocked_seconds", "Time for which training waits for that copy."),
)


class GuardCollector(Collector):
    """Renders the snapshots that `source()` returns at the time of the scrape; label `job` on all."""

    def __init__(self, source: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """The families without samples, so that registering does not call `source`."""
        return [_metric(family) for family in FAMILIES]

    def collect(self) -> Iterable[Metric]:
        """What a pusher of another version lacks, or has in addition, is ignored."""
        snapshots = list(self._source())
        for family in FAMILIES:
            metric = _metric(family)
            for snapshot in snapshots:
                for suffix, labels, value in _samples(family, snapshot):
                    metric.add_sample(
                        f"gradguard_{family.name}{suffix}", {"job": snapshot["job"], **dict(labels)}, value
                    )
            yield metric


class SharedCollector(GuardCollector):
    """The jobs of one process on one registry, which takes each name once; use ``GuardMetrics.register``."""

    def __init__(self) -> None:
        self.jobs: dict[str, Callable[[], Mapping[str, Any]]] = {}
        super().__init__(lambda: [snapshot() for snapshot in list(self.jobs.values())])

    @classmethod
    def on(cls, registry: CollectorRegistry) -> SharedCollector:
        """That of the registry; made and registered where there is none."""
        for collector in registry._collector_to_names:
            if isinstance(collector, cls):
                return collector
        created = cls()
        registry.register(created)
        return created


def render(snapshots: Iterable[Mapping[str, Any]]) -> str:
    """Prometheus' text format, version 0.0.4: what `GuardCollector` gives through prometheus-client's own
    writer, several times faster, which matters where one scrape shows hundreds of jobs."""
    known = [(f'job="{_escaped(snapshot["job"])}"', snapshot) for snapshot in snapshots]
    lines: list[str] = []
    for family in FAMILIES:
        kind = "gauge" if family.kind == "info" else family.kind
        lines.append(f"# HELP {family.exported} {family.help}")
        lines.append(f"# TYPE {family.exported} {kind}")
        for job, snapshot in known:
            for suffix, labels, value in _samples(family, snapshot):
                rest = "".join([f',{name}="{_escaped(text)}"' for name, text in labels])
                lines.append(f"gradguard_{family.name}{suffix}{{{job}{rest}}} {float(value)!r}")
    return "\n".join(lines) + "\n"


def _metric(family: Family) -> Metric:
    return Metric(f"gradguard_{family.name}", family.help, family.kind)


def _samples(family: Family, snapshot: Mapping[str, Any]) -> Iterator[tuple[str, Labels, float]]:
    """Suffix of the name, labels beside `job`, and value."""
    if family.kind == "info":
        yield "_info", tuple(snapshot["info"].items()), 1.0
        return
    found = snapshot["values" if family.kind == "gauge" else "totals"].get(family.name)
    if found is None:
        return
    if family.kind == "histogram":
        for edge, count in found["buckets"].items():
            yield "_bucket", (("le", edge),), count
        yield "_count", (), count
        yield "_sum", (), found["sum"]
        return
    suffix = "_total" if family.kind == "counter" else ""
    for labels, value in _leaves(found, family.labels):
        yield suffix, labels, value


def _leaves(value: Any, names: tuple[str, ...], labels: Labels = ()) -> Iterator[tuple[Labels, float]]:
    """The numbers of a mapping that is nested as deep as there are names, with the keys that lead to each."""
    if not names:
        yield labels, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, names[1:], (*labels, (names[0], key)))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
