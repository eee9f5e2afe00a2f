"""Cost of the metrics hub: in a step of 10 ms, and of a scrape of a thousand jobs.

Python's own time is taken, on the thread or process that spends it, so that another load on the machine
does not count. The job is one of 64 layers and 8 ranks, which pushes as often as a real one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from prometheus_client import CollectorRegistry, generate_latest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from measure import publish

from guard.record.exposition import GuardCollector
from guard.record.metrics import GuardMetrics, Layers
from guard.types import StepReport
from jobs.cluster.session import ray_session
from jobs.observability.counter_carryover import CounterCarryover
from jobs.observability.hub import Hub, HubLink, ensure_hub, stop_hub
from jobs.observability.hub_server import page
from jobs.observability.progress import STATUS_INTERVAL_S

STEP_S = 0.010
LAYERS = [f"layer{n // 8}.{n % 8}.conv.weight" for n in range(64)]
RANKS = 8
STATUS = {"phase": "training", "step": 1, "loss": 0.5, "counters": {"anomalies": 0}}


def attempt(metrics: GuardMetrics, norms: Any) -> None:
    """One step, as the guard's recorder counts it."""
    report = StepReport(
        step=1,
        loss=0.5,
        grad_norm=1.0,
        clip_threshold=2.0,
        learning_rate=0.1,
        guard_seconds=0.001,
        update_norm=0.01,
        buffer_jump=0.1,
        local_norms=[1.0] * RANKS,
    )
    metrics.totals.observe(report)
    metrics.observe(report, Layers(LAYERS, norms), rollback_budget=5, rollbacks_left=5)


def job(name: str) -> dict[str, Any]:
    """The snapshot of a running job."""
    metrics = GuardMetrics(job=name, info={"model": "resnet50"}, samples_per_step=256)
    attempt(metrics, np.linspace(0.1, 1.0, len(LAYERS)))
    metrics.checkpoint_written(step=1, seconds=1.0, blocked_seconds=0.1, size=1000)
    return metrics.snapshot()


def cpu(work: Callable[[], Any], rounds: int) -> float:
    """Median of this thread's own seconds of a call."""
    seconds = []
    for _ in range(rounds):
        started = time.thread_time()
        work()
        seconds.append(time.thread_time() - started)
    return statistics.median(seconds)


def cost_of_a_step(rounds: int) -> list[dict[str, Any]]:
    """On rank 0: to count a step, and to push; in the hub: to take a push."""
    metrics, norms = GuardMetrics(job="bench", samples_per_step=256), np.linspace(0.1, 1.0, len(LAYERS))
    pushes_a_step = STEP_S / STATUS_INTERVAL_S
    with tempfile.TemporaryDirectory(prefix="gg", dir="/tmp") as folder, ray_session(num_cpus=1):
        hub = ensure_hub(0)
        link, carryover = HubLink(hub, "bench"), CounterCarryover(Path(folder, ".counters.json"))

        def push() -> None:
            link.push(carryover.carry(metrics.snapshot()), STATUS)
            ray.get(hub.address.remote())

        def wait_only() -> None:
            ray.get(hub.address.remote())

        count = cpu(lambda: attempt(metrics, norms), 10 * rounds)
        sent = max(0.0, cpu(push, rounds) - cpu(wait_only, rounds))
        before = ray.get(hub.__ray_call__.remote(lambda _: time.process_time()))
        for _ in range(rounds):
            push()
        after = ray.get(hub.__ray_call__.remote(lambda _: time.process_time()))
        stop_hub()
    taken = (after - before) / rounds
    parts = {
        "count the step": (count, 1.0),
        "push (rank 0)": (sent, pushes_a_step),
        "take the push (hub)": (taken, pushes_a_step),
    }
    rows = [
        {
            "part": name,
            "us": 1e6 * seconds,
            "us a step": 1e6 * seconds * often,
            "% of 10 ms": 100 * seconds * often / STEP_S,
        }
        for name, (seconds, often) in parts.items()
    ]
    total = {
        "part": "together",
        "us": "",
        **{key: sum(row[key] for row in rows) for key in ("us a step", "% of 10 ms")},
    }
    return [*rows, total]


def rendered_by_library(snapshots: list[Any]) -> bytes:
    """The same metrics through prometheus-client's own registry and writer."""
    registry = CollectorRegistry()
    registry.register(GuardCollector(lambda: snapshots))
    return generate_latest(registry)


def cost_of_a_scrape(jobs: int, rounds: int) -> list[dict[str, Any]]:
    """Rendering alone, and a whole compressed scrape over HTTP, as Prometheus does it."""
    hub = Hub(0)
    try:
        for number in range(jobs):
            hub.push(f"job-{number}", job(f"job-{number}"), STATUS, [])
        rendered = page(*hub.rows())
        request = urllib.request.Request(hub.address(), headers={"Accept-Encoding": "gzip"})
        wall, own = [], []
        for _ in range(rounds):
            started, began = time.perf_counter(), time.process_time()
            with urllib.request.urlopen(request, timeout=60) as response:
                carried = len(response.read())
            wall.append(time.perf_counter() - started)
            own.append(time.process_time() - began)
        cpu_s = cpu(lambda: page(*hub.rows()), rounds)
        library_s = cpu(lambda: rendered_by_library([row.snapshot for row in hub.rows()[1]]), rounds)
    finally:
        hub.close()
    return [
        {
            "jobs": jobs,
            "series": rendered.count(b"\n"),
            "MB": len(rendered) / 1e6,
            "MB carried": carried / 1e6,
            "render s (CPU)": cpu_s,
            "by prometheus-client s (CPU)": library_s,
            "scrape s (CPU)": statistics.median(own),
            "scrape s (wall, best)": min(wall),
            "(wall, median)": statistics.median(wall),
        }
    ]


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="jobs that one scrape shows")
    parser.add_argument("--rounds", type=int, default=200, help="pushes that are timed")
    parser.add_argument("--json", type=Path, help="write the tables to this file too")
    options = parser.parse_args()
    tables = {
        f"a scrape of {options.jobs} jobs": cost_of_a_scrape(options.jobs, 5),
        "the hub's share of a step of 10 ms": cost_of_a_step(options.rounds),
    }
    publish("hub", tables, options.json)


if __name__ == "__main__":
    main()
