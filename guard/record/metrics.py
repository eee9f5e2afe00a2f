"""What the guard shows to Prometheus: totals and last values of one job.

`GuardMetrics` is plain Python, costs a few microseconds a step and belongs to whoever runs the loop. Its
`snapshot()` is cumulative and JSON-able, so it can be rendered in another process (`exposition`). No label
grows with the number of steps.
"""

from __future__ import annotations

import heapq
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from prometheus_client.registry import CollectorRegistry

from guard.record.cardinality import group_names, group_norms, outliers
from guard.record.exposition import GuardCollector, SharedCollector
from guard.record.totals import ROLLBACK_BUCKETS, SIGNALS, Histogram, Totals, larger
from guard.records import GAUGES
from guard.types import Floats, StepReport

CHECKPOINT_OUTCOMES = ("written", "good", "suspect", "failed", "damaged")
VALUED_SIGNALS = tuple(signal for signal in SIGNALS if signal != "replicas")
"""Signals with a number at every step: that ranks differ is found, or not."""
NONFINITE_SIGNALS = (*VALUED_SIGNALS, "grad_norm_local", "layer_grad_norm")
KEYED = (
    "grad_norm_local",
    "layer_grad_norm",
    "regularization_strength",
    "evaluation",
    "attempt_seconds",
    "gpu_memory_bytes",
    "gpu_peak_bytes",
    "gpu_mean_utilization",
)
"""Values with one number a rank, layer, kind, metric or part."""
_SIGNAL_OF = {name: name for name in VALUED_SIGNALS if name != "buffers"} | {"buffer_jump": "buffers"}
"""The signal under which a value of a step that is not finite is counted, by the field of its record."""

MAX_LAYERS = 64
MAX_RANKS = 64
MAX_EVALUATION = 32

_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Layers:
    """One norm a layer; float64 [layers], not written to later."""

    names: Sequence[str]
    norms: Floats

    def named(self) -> dict[str, float]:
        return dict(zip(self.names, self.norms.tolist(), strict=True))


class GuardMetrics:
    """What Prometheus is shown of one job: the guard's totals, and the last values.

    A counter never decreases: `load_state_dict` keeps the larger of what is saved and what is here, so a
    rollback does not change the counters and a restart continues them. A gauge keeps its last *finite* value
    and `gradguard_nonfinite_total` counts the rest, because `NaN > x` is never true in an alert.

    Safe to scrape while another thread steps.

    Args:
        job: label of every series.
        info: the labels of `gradguard_job_info`.
        samples_per_step: of the global batch; without it no samples are counted.
        tokens_per_step: the same for tokens.
        max_layers: more parameters than these are shown in groups.
        max_ranks: of more ranks than these, only those are shown whose local norm stands out.

    Raises:
        ValueError: a limit is below 1, or `info` has a name that is no label.
    """

    def __init__(
        self,
        *,
        job: str = "",
        info: Mapping[str, str] | None = None,
        samples_per_step: int | None = None,
        tokens_per_step: int | None = None,
        max_layers: int = MAX_LAYERS,
        max_ranks: int = MAX_RANKS,
    ) -> None:
        if min(max_layers, max_ranks) < 1:
            raise ValueError(f"max_layers and max_ranks must be 1 or more; got {max_layers} and {max_ranks}")
        self.job = job
        self.info = _checked_info(info or {})
        self._per_step = {"samples": samples_per_step, "tokens": tokens_per_step}
        self._max_layers, self._max_ranks = max_layers, max_ranks
        self._groups: dict[str, str] = {}
        self._rank_names: list[str] = []
        self._lock = threading.Lock()
        self._created = time.time()
        self._values: dict[str, float] = {}
        self._keyed: dict[str, dict[str, float]] = {name: {} for name in KEYED}
        self.totals = Totals()
        self._seen = {name: 0 for name, size in self._per_step.items() if size is not None}
        self._nonfinite = dict.fromkeys(NONFINITE_SIGNALS, 0)
        self._latest_layers: Layers | None = None
        self._latest_ranks: Sequence[float] | None = None
        self._checkpoints = dict.fromkeys(CHECKPOINT_OUTCOMES, 0)
        self._checkpoint_seconds = Histogram(ROLLBACK_BUCKETS)
        self._checkpoint_blocked_seconds = Histogram(ROLLBACK_BUCKETS)

    def observe(
        self,
        report: StepReport,
        layers: Mapping[str, float] | Layers | None = None,
        *,
        noise_scale: float | None = None,
        rollback_budget: int | None = None,
        rollbacks_left: int | None = None,
    ) -> None:
        """Shows the values of one attempt; its totals are counted by `Totals.observe`.

        Args:
            report: of the attempt. None in it leaves the last value, but a clip threshold of None removes it:
                nothing is clipped at present.
            layers: gradient norm of each parameter.
            noise_scale: in global batches.
            rollback_budget: rollbacks allowed within the window of the budget.
            rollbacks_left: of these.
        """
        shown = {"gradient_noise_scale": noise_scale, "rollback_budget": rollback_budget}
        shown["rollback_budget_left"] = rollbacks_left
        cooldown = {f"recovery_{name}": v for name, v in report.recovery.items() if name != "lr_scale"}
        with self._lock:
            self._progress(report.step)
            for name, value in shown.items():
                if value is not None:
                    _keep_finite(self._values, name, value)
            for field, (gauge, _) in GAUGES.items():
                value = getattr(report, field)
                if value is not None and not _keep_finite(self._values, gauge, value) and field in _SIGNAL_OF:
                    self._nonfinite[_SIGNAL_OF[field]] += 1
            self._values.pop("clip_threshold", None)
            if report.clip_threshold is not None:
                _keep_finite(self._values, "clip_threshold", report.clip_threshold)
            if report.local_norms is not None and not all(map(math.isnan, report.local_norms)):
                self._ranks(report.local_norms)
            if layers is not None:
                self._take_layers(layers)
            _update_finite(self._keyed["regularization_strength"], cooldown)

    def regularization(self, strengths: Mapping[str, float]) -> None:
        """The strength of each regularization in force; a kind that is not named keeps its value."""
        with self._lock:
            _update_finite(self._keyed["regularization_strength"], strengths)

    def evaluation(self, metrics: Mapping[str, float]) -> None:
        """The metrics of an evaluation, at most ``MAX_EVALUATION`` of them."""
        with self._lock:
            known = self._keyed["evaluation"]
            new = [name for name in metrics if name not in known][: MAX_EVALUATION - len(known)]
            _update_finite(known, {name: metrics[name] for name in metrics if name in known or name in new})

    def timing(self, seconds: Mapping[str, float]) -> None:
        """Mean seconds of the last attempts by part: ``all``, and ``data``, the wait for the batch."""
        with self._lock:
            _update_finite(self._keyed["attempt_seconds"], seconds)

    def gpu(self, memory_bytes: Mapping[str, float], utilization: float | None = None) -> None:
        """Memory of the GPU by kind, in bytes, and the share of the time in which it computed."""
        with self._lock:
            _update_finite(self._keyed["gpu_memory_bytes"], memory_bytes)
            if utilization is not None:
                _keep_finite(self._values, "gpu_utilization", utilization)

    def gpus(self, peak_bytes: Mapping[str, float], utilization: Mapping[str, float]) -> None:
        """The most memory and the mean utilization of every rank's GPU, by rank; of more than `max_ranks`
        those with the most memory and those that computed least."""
        with self._lock:
            fullest = heapq.nlargest(self._max_ranks, peak_bytes, key=peak_bytes.__getitem__)
            idlest = heapq.nsmallest(self._max_ranks, utilization, key=utilization.__getitem__)
            self._keyed["gpu_peak_bytes"] = {rank: peak_bytes[rank] for rank in fullest}
            self._keyed["gpu_mean_utilization"] = {rank: utilization[rank] for rank in idlest}

    def checkpoint(self, outcome: str) -> None:
        """Count what became of a checkpoint: ``good``, ``suspect`` (deleted), ``failed``, ``damaged``."""
        with self._lock:
            if outcome not in self._checkpoints:
                raise ValueError(f"outcome must be one of {', '.join(CHECKPOINT_OUTCOMES)}; got {outcome!r}")
            self._checkpoints[outcome] += 1

    def checkpoint_written(self, *, step: int, seconds: float, blocked_seconds: float, size: int) -> None:
        """Count a checkpoint of `size` bytes that is on disk, and for how long training waited for it."""
        self.checkpoint("written")
        with self._lock:
            self._values["checkpoint_last_step"] = float(step)
            self._values["checkpoint_last_timestamp_seconds"] = time.time()
            self._values["checkpoint_bytes"] = float(size)
            self._checkpoint_seconds.observe(seconds)
            self._checkpoint_blocked_seconds.observe(blocked_seconds)

    def snapshot(self) -> dict[str, Any]:
        """Everything a scrape needs, as strict JSON: nothing in it is NaN or infinite, and it does not grow
        with the number of layers and ranks beyond the limits."""
        state = self.state_dict()
        values = state["values"]
        local, layers = values["grad_norm_local"], values["layer_grad_norm"]
        if local:
            values["grad_norm_local_median"] = median_low(local.values())
        values["grad_norm_local"] = outliers(local, self._max_ranks)
        if len(layers) > self._max_layers:
            values["layer_grad_norm"] = group_norms(layers, self._grouping(layers))
        values["job_created_timestamp_seconds"] = state["created"]
        return {"job": self.job, "info": dict(self.info), **state}

    def state_dict(self) -> dict[str, Any]:
        """Totals and last values. `created` (unix seconds) is when the totals started."""
        with self._lock:
            self._name_latest()
            keyed = {name: dict(values) for name, values in self._keyed.items()}
            totals = {**self.totals.state_dict(), **self._own_totals()}
            return {"created": self._created, "values": {**self._values, **keyed}, "totals": totals}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; a total that is already larger here stays."""
        with self._lock:
            self.totals.load_state_dict(state["totals"])
            totals = larger(self._own_totals(), state["totals"])
            self._latest_layers, self._latest_ranks, self._rank_names = None, None, []
            self._created = min(self._created, float(state["created"]))
            values = dict(state["values"])
            self._keyed = {name: dict(values.pop(name, {})) for name in self._keyed}
            self._values = values
            self._seen = {name: totals[name] for name in ("samples", "tokens") if name in totals}
            self._nonfinite, self._checkpoints = totals["nonfinite"], totals["checkpoints"]
            self._checkpoint_seconds.load(totals["checkpoint_seconds"])
            self._checkpoint_blocked_seconds.load(totals["checkpoint_blocked_seconds"])

    def register(self, registry: CollectorRegistry) -> GuardCollector:
        """Serve this job on `registry`, beside other jobs of this process.

        Returns:
            The collector of all of them, to unregister them later; `unregister` removes this job alone.

        Raises:
            ValueError: the registry shows a job of this name already.
        """
        shared = SharedCollector.on(registry)
        if self.job in shared.jobs:
            raise ValueError(
                f"the registry shows a job {self.job!r} already: give each guard a job of its own, such as "
                "job='generator', or unregister the other one"
            )
        shared.jobs[self.job] = self.snapshot
        return shared

    def unregister(self, registry: CollectorRegistry) -> None:
        """Take this job, or that of its name, from `registry`."""
        SharedCollector.on(registry).jobs.pop(self.job, None)

    def _progress(self, steps_accepted: int) -> None:
        self._values["steps_accepted"] = float(steps_accepted)
        for name, size in self._per_step.items():
            if size is not None:
                self._seen[name] = self._seen.get(name, 0) + size
                self._values[f"{name}_accepted"] = float(steps_accepted * size)

    def _grouping(self, layers: Mapping[str, float]) -> dict[str, str]:
        if self._groups.keys() != layers.keys():
            self._groups = group_names(list(layers), self._max_layers)
        return self._groups

    def _signals(self, name: str, values: Mapping[str, float]) -> None:
        self._nonfinite[name] += _update_finite(self._keyed[name], values)

    def _take_layers(self, layers: Mapping[str, float] | Layers) -> None:
        """Norms that are all finite are named only at a scrape."""
        if isinstance(layers, Layers) and math.isfinite(layers.norms.sum()):
            self._latest_layers = layers
            return
        self._name_latest()
        self._signals("layer_grad_norm", layers.named() if isinstance(layers, Layers) else layers)

    def _name_latest(self) -> None:
        if self._latest_layers is not None:
            self._keyed["layer_grad_norm"].update(self._latest_layers.named())
        if self._latest_ranks is not None:
            self._keyed["grad_norm_local"].update(zip(self._rank_names, self._latest_ranks, strict=True))
        self._latest_layers = self._latest_ranks = None

    def _ranks(self, local_norms: Sequence[float]) -> None:
        """Norms that are all finite are named only at a scrape."""
        if len(self._rank_names) != len(local_norms):
            self._name_latest()
            self._rank_names = [str(rank) for rank in range(len(local_norms))]
            known = self._keyed["grad_norm_local"]
            self._keyed["grad_norm_local"] = {name: known[name] for name in self._rank_names if name in known}
        if math.isfinite(sum(local_norms)):
            self._latest_ranks = local_norms
            return
        self._name_latest()
        self._signals("grad_norm_local", dict(zip(self._rank_names, local_norms, strict=True)))

    def _own_totals(self) -> dict[str, Any]:
        return {
            **self._seen,
            "nonfinite": dict(self._nonfinite),
            "checkpoints": dict(self._checkpoints),
            "checkpoint_failures": self._checkpoints["failed"],
            "checkpoint_seconds": self._checkpoint_seconds.dump(),
            "checkpoint_blocked_seconds": self._checkpoint_blocked_seconds.dump(),
        }


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


def _checked_info(info: Mapping[str, str]) -> dict[str, str]:
    for name in info:
        if name == "job" or not _LABEL_NAME.fullmatch(name):
            raise ValueError(f"info has the name {name!r}: use letters, digits and _, and not 'job'")
    return {name: str(value) for name, value in info.items()}
