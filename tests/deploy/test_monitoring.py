"""A real job with faults, watched by a real Prometheus: alerts fire and clear, dashboards show it."""

import contextlib
import json
import math
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.deploy.servers import (
    INSTALLED,
    PROMETHEUS,
    WINDOW,
    Alertmanager,
    Prometheus,
    free_port,
)
from tests.integration.harness.runner import GRADGUARD, Sandbox
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED, reason="Prometheus or Alertmanager is not installed"),
]

JOB = "watched"
DASHBOARDS = [
    PROMETHEUS.parent / "grafana" / "dashboards" / f"gradguard-{kind}.json"
    for kind in ("fleet", "incident", "job")
]
"""Those that show what the hub exports; the cluster's asks the service and Ray."""
FAULTS = [
    {"kind": "nan_loss", "step": 20, "rank": 1, "times": 2},
    {"kind": "lr_spike", "step": 40, "factor": 1e4},
]


@dataclass(frozen=True)
class Watched:
    """A job at work, and what watches it."""

    prometheus: Prometheus
    alertmanager: Alertmanager
    folder: Path


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Runs from before the faults until the last test of this file; the job is then asked to stop."""
    root = tmp_path_factory.mktemp("monitoring")
    sandbox, port = Sandbox(root), free_port()
    spec = sandbox.spec(
        JOB,
        train={"max_steps": 1_000_000, "checkpoint_every_steps": 30, "eval_every_epochs": 2},
        metrics={"port": port},
        faults=FAULTS,
    )
    alertmanager = Alertmanager(root / "alertmanager")
    prometheus = Prometheus(root / "prometheus", port, alertmanager)
    with (root / "job.log").open("w") as log:
        job = subprocess.Popen(
            [GRADGUARD, "train", spec], cwd=root, env=sandbox.environment, stdout=log, stderr=log
        )
    try:
        yield Watched(prometheus, alertmanager, root)
    finally:
        job.send_signal(signal.SIGINT)
        try:
            job.wait(timeout=60)
        finally:
            job.kill()
            prometheus.stop()
            alertmanager.stop()


def log_of(watched: Watched) -> str:
    return (watched.folder / "job.log").read_text()


def test_the_right_alerts_fire_and_clear_while_the_job_continues(watched: Watched) -> None:
    """Which others fire, and whether the two fire at once, depends on the machine: how many steps it makes in
    a window that is so short, and whether all scrapes come in time; until the job is up the hub is down."""
    expected = {"GradGuardRollback", "GradGuardNonFinite"}
    possible = expected | {
        "GradGuardHubDown",
        "GradGuardAnomalyRate",
        "GradGuardStepsSkipped",
        "GradGuardRankDiverging",
        "GradGuardStalled",
    }
    seen: dict[str, set[str]] = {}

    def active() -> set[str]:
        seen.update(now := watched.alertmanager.active())
        return set(now)

    until(lambda: expected <= active() | seen.keys(), what=f"{expected} fire; {log_of(watched)}")
    until(lambda: not expected & active(), what=f"they clear {WINDOW} later; {log_of(watched)}")
    assert seen.keys() <= possible
    assert all(seen[name] == {"morning"} for name in expected)
    assert watched.prometheus.value(f'gradguard_hub_job{{job="{JOB}", state="running"}}') == 1
    assert watched.prometheus.value(f'gradguard_rollbacks_total{{job="{JOB}", source="memory"}}') == 1


def test_rolled_back_steps_are_attempts_but_not_accepted(watched: Watched) -> None:
    accepted = [
        float(value)
        for _, value in watched.prometheus.series(f'gradguard_steps_accepted{{job="{JOB}"}}')[0]["values"]
    ]
    attempts = watched.prometheus.value(f'gradguard_attempts_total{{job="{JOB}"}}')
    lost = watched.prometheus.value(f'gradguard_steps_lost_total{{job="{JOB}"}}')
    assert lost
    assert attempts
    assert attempts >= accepted[-1] + lost + 3  # two skipped and one rolled back
    assert accepted != sorted(accepted)


def test_counters_never_decrease(watched: Watched) -> None:
    result = watched.prometheus.series('{__name__=~"gradguard_.*(_total|_count|_bucket)"}')
    assert len(result) > 50
    for series in result:
        values = [float(value) for _, value in series["values"]]
        assert values == sorted(values), series["metric"]


def test_no_series_is_ever_nan(watched: Watched) -> None:
    for series in watched.prometheus.series('{__name__=~"(job.*:)?gradguard_.*"}'):
        assert all(math.isfinite(float(value)) for _, value in series["values"]), series["metric"]


def filled(expression: str) -> str:
    """The variables as Grafana would fill them in; what is compared with a day earlier, as of now."""
    values = {"$__rate_interval": "10s", "$__range": "5m", "$job": JOB, "$rank": ".*"}
    for name, value in values.items():
        expression = expression.replace(name, value)
    return expression.replace(" offset 1d", "")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_of_every_panel_and_every_mark_finds_series(watched: Watched, path: Path) -> None:
    dashboard: dict[str, Any] = json.loads(path.read_text())
    marks = dashboard.get("annotations", {}).get("list", [])
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [mark["expr"] for mark in marks]
    without = ("gradguard_attention_logit",)  # a ResNet has none
    without += () if torch.cuda.is_available() else ("gradguard_gpu_",)
    missing = {query for query in queries if not query.startswith(without)}

    def all_found() -> bool:
        missing.difference_update([q for q in missing if watched.prometheus.series(filled(q))])
        return not missing

    with contextlib.suppress(AssertionError):  # an evaluation comes only after some epochs
        until(all_found, within_s=120)
    assert not missing


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_the_variables_list_the_job_and_its_ranks(watched: Watched, path: Path) -> None:
    found = {}
    for variable in json.loads(path.read_text())["templating"]["list"]:
        if variable["type"] != "query":
            continue
        selector, label = variable["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        place, wanted = f"/api/v1/label/{label}/values", {"match[]": filled(selector)}
        found[variable["name"]] = until(
            lambda place=place, wanted=wanted: watched.prometheus.get(place, **wanted)["data"],
            what=f"values of {label}",
        )
    assert found.pop("job") == [JOB]
    assert found in ({}, {"rank": ["0", "1"]})
