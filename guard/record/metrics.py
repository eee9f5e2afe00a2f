"""What the guard shows to Prometheus: totals and last values of one job.

`GuardMetrics` is plain Python, costs a few microseconds a step and belongs to whoever runs the loop. Its
`snapshot()` is cumulative and JSON-able, so it can be rendered in another process (`exposition`). No label
grows with the number of steps.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.registry import CollectorRegistry

from guard.record.cardinality import group_names, group_norms, outliers
from guard.record.exposition import GuardCollector
from guard.record.totals import Histogram, larger

ACTIONS = ("applied", "clipped", "skipped", "rolled_back")
SOURCES = ("memory", "disk")
SIGNALS = ("loss", "grad_norm", "update_norm", "buffers")
VERDICTS = ("suspect", "spike", "nonfinite", "drift", "vanishing")
CHECKPOINT_OUTCOMES = ("written", "good", "suspect", "failed", "damaged")
NONFINITE_SIGNALS = (*SIGNALS, "grad_norm_local", "layer_grad_norm")

GUARD_BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
ROLLBACK_BUCKETS = (1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

MAX_LAYERS = 64
MAX_RANKS = 64

_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Layers:
    """One norm a layer; float64 [layers], not written to later."""

    names: Sequence[str]
    norms: NDArray[np.float64]

    def named(self) -> dict[str, float]:
        """By name."""
        return dict(zip(self.names, self.norms.tolist(), strict=True))


class GuardMetrics:
    """Totals and last values of one job.

    A counter never goes back: `load_state_dict` keeps the larger of what is saved and what is here, so a
    rollback leaves the counters alone and a restart continues them. A gauge keeps its last *finite* value and
    `gradguard_nonfinite_total` counts the rest, because `NaN > x` is never true in an alert.

    Safe to scrape while another thread steps.

    Args:
        job: label of every series.
        info: the labels of `gradguard_job_info`.
        samples_per_step: of the global batch; without it no samples are counted.
        tokens_per_step: the same for tokens.
        max_layers: parameters beyond so many are shown in groups.
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
        self._lock = threading.Lock()
        self._created = time.time()
        self._values: dict[str, float] = {}
        self._keyed: dict[str, dict[str, float]] = {
            "grad_norm_local": {},
            "layer_grad_norm": {},
            "regularization_strength": {},
        }
        self._steps = dict.fromkeys(ACTIONS, 0)
        self._seen = {name: 0 for name, size in self._per_step.items() if size is not None}
        self._anomalies = {signal: dict.fromkeys(VERDICTS, 0) for signal in SIGNALS}
        self._rollbacks = dict.fromkeys(SOURCES, 0)
        self._nonfinite = dict.fromkeys(NONFINITE_SIGNALS, 0)
        self._steps_lost = 0
        self._hardware_faults = {"unknown": 0}
        self._latest_layers: Layers | None = None
        self._micro_batches_dropped = 0
        self._rank_exclusions = 0
        self._guard_seconds = Histogram(GUARD_BUCKETS)
        self._rollback_seconds = Histogram(ROLLBACK_BUCKETS)
        self._checkpoints = dict.fromkeys(CHECKPOINT_OUTCOMES, 0)
        self._checkpoint_seconds = Histogram(ROLLBACK_BUCKETS)
        self._checkpoint_blocked_seconds = Histogram(ROLLBACK_BUCKETS)

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
        buffer_jump: float | None = None,
        layers: Mapping[str, float] | Layers | None = None,
        local_norms: Sequence[float] | None = None,
        regularization: Mapping[str, float] | None = None,
        steps_accepted: int | None = None,
        rollback_budget: int | None = None,
        rollbacks_left: int | None = None,
    ) -> None:
        """Record one attempted step. `None` leaves the last value standing; a threshold of `None` (nothing is
        clipped at present) removes it. `local_norms` has one entry a rank; all NaN means not measured.
        `steps_accepted` are those of the history that stands, `rollbacks_left` of the `rollback_budget`."""
        with self._lock:
            if action not in self._steps:
                raise ValueError(f"action must be one of {', '.join(ACTIONS)}; got {action!r}")
            self._steps[action] += 1
            self._progress(steps_accepted)
            if rollback_budget is not None and rollbacks_left is not None:
                self._values["rollback_budget"] = float(rollback_budget)
                self._values["rollback_budget_left"] = float(rollbacks_left)
            self._signal("loss", loss)
            self._signal("grad_norm", grad_norm)
            if update_norm is not None:
                self._signal("update_norm", update_norm)
            if buffer_jump is not None:
                self._signal("buffers", buffer_jump, gauge="buffer_jump")
            self._threshold(clip_threshold)
            _keep_finite(self._values, "clip_coefficient", clip_coef)
            _keep_finite(self._values, "learning_rate", learning_rate)
            self._guard_seconds.observe(guard_seconds)
            if local_norms is not None and not all(map(math.isnan, local_norms)):
                self._ranks(local_norms)
            if layers is not None:
                self._take_layers(layers)
            if regularization is not None:
                _update_finite(self._keyed["regularization_strength"], regularization)

    def regularization(self, strengths: Mapping[str, float]) -> None:
        """What keeps the weights small at present, by kind; a kind that is not named keeps its value."""
        with self._lock:
            _update_finite(self._keyed["regularization_strength"], strengths)

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

    def hardware_fault(self, *, rank: int) -> None:
        """Count one batch that gave another result on `rank` when it was computed again; -1 is unknown."""
        with self._lock:
            name = str(rank) if rank >= 0 else "unknown"
            self._hardware_faults[name] = self._hardware_faults.get(name, 0) + 1

    def dropped(self, micro_batches: int) -> None:
        """Count micro-batches that were left out."""
        with self._lock:
            self._micro_batches_dropped += micro_batches

    def rank_exclusions(self, ranks: int) -> None:
        """Count shares of ranks whose data stays bad, left out of a batch that was applied."""
        with self._lock:
            self._rank_exclusions += ranks

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
        """Totals and last values. `created` (unix seconds) says when the totals began."""
        with self._lock:
            self._name_layers()
            keyed = {name: dict(values) for name, values in self._keyed.items()}
            return {"created": self._created, "values": {**self._values, **keyed}, "totals": self._totals()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; a total that is already larger here stays."""
        with self._lock:
            totals = larger(self._totals(), state["totals"])
            self._latest_layers = None
            self._created = min(self._created, float(state["created"]))
            values = dict(state["values"])
            self._keyed = {name: dict(values.pop(name)) for name in self._keyed}
            self._values = values
            self._steps, self._anomalies = totals["steps"], totals["anomalies"]
            self._seen = {name: totals[name] for name in ("samples", "tokens") if name in totals}
            self._rollbacks, self._nonfinite = totals["rollbacks"], totals["nonfinite"]
            self._steps_lost = totals["steps_lost"]
            self._hardware_faults = totals["hardware_faults"]
            self._micro_batches_dropped = totals["micro_batches_dropped"]
            self._rank_exclusions = totals["rank_exclusions"]
            self._guard_seconds.load(totals["guard_seconds"])
            self._rollback_seconds.load(totals["rollback_seconds"])
            self._checkpoints = totals["checkpoints"]
            self._checkpoint_seconds.load(totals["checkpoint_seconds"])
            self._checkpoint_blocked_seconds.load(totals["checkpoint_blocked_seconds"])

    def register(self, registry: CollectorRegistry) -> GuardCollector:
        """Serve this job on `registry`; returns the collector, to unregister it later. Several jobs of one
        process need one `GuardCollector` over all their snapshots, since a registry takes each name once."""
        collector = GuardCollector(lambda: [self.snapshot()])
        registry.register(collector)
        return collector

    def _progress(self, steps_accepted: int | None) -> None:
        if steps_accepted is not None:
            self._values["steps_accepted"] = float(steps_accepted)
        for name, size in self._per_step.items():
            if size is None:
                continue
            self._seen[name] = self._seen.get(name, 0) + size
            if steps_accepted is not None:
                self._values[f"{name}_accepted"] = float(steps_accepted * size)

    def _grouping(self, layers: Mapping[str, float]) -> dict[str, str]:
        if self._groups.keys() != layers.keys():
            self._groups = group_names(list(layers), self._max_layers)
        return self._groups

    def _signal(self, name: str, value: float, *, gauge: str | None = None) -> None:
        self._nonfinite[name] += not _keep_finite(self._values, gauge or name, value)

    def _signals(self, name: str, values: Mapping[str, float]) -> None:
        self._nonfinite[name] += _update_finite(self._keyed[name], values)

    def _take_layers(self, layers: Mapping[str, float] | Layers) -> None:
        """Norms that are all finite are named only when somebody asks for them."""
        if isinstance(layers, Layers) and math.isfinite(layers.norms.sum()):
            self._latest_layers = layers
            return
        self._name_layers()
        self._signals("layer_grad_norm", layers.named() if isinstance(layers, Layers) else layers)

    def _name_layers(self) -> None:
        if self._latest_layers is not None:
            self._keyed["layer_grad_norm"].update(self._latest_layers.named())
            self._latest_layers = None

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
            "attempts": sum(self._steps.values()),
            **self._seen,
            "steps": dict(self._steps),
            "anomalies": {signal: dict(verdicts) for signal, verdicts in self._anomalies.items()},
            "rollbacks": dict(self._rollbacks),
            "nonfinite": dict(self._nonfinite),
            "steps_lost": self._steps_lost,
            "hardware_faults": dict(self._hardware_faults),
            "micro_batches_dropped": self._micro_batches_dropped,
            "rank_exclusions": self._rank_exclusions,
            "guard_seconds": self._guard_seconds.dump(),
            "rollback_seconds": self._rollback_seconds.dump(),
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
