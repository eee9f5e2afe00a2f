"""The dashboards: every panel explains itself, and every query finds series in a real Prometheus."""

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from guard.metrics import GuardMetrics
from jobs.hub import Hub

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
PROVISIONING = DEPLOY / "grafana" / "provisioning"
DEADLINE_S = 60.0
JOB = "fashion"


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def panels() -> list[Any]:
    return [
        pytest.param(panel, id=f"{path.stem}-{panel['id']}-{panel['title']}")
        for path in DASHBOARDS
        for panel in load(path)["panels"]
    ]


def queries() -> list[str]:
    """Every query of every dashboard, panels and annotations, with the variables filled in."""
    found = []
    for dashboard in map(load, DASHBOARDS):
        found += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        found += [annotation["target"]["expr"] for annotation in dashboard["annotations"]["list"]]
    return [query.replace("$__rate_interval", "1m").replace("$job", JOB) for query in found]


def rule_expressions() -> list[str]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    return [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bgradguard_\w+", expression))


def play(metrics: GuardMetrics, attempts: int) -> None:
    """Some steps of every kind, an anomaly and a rollback of every source."""
    for index in range(attempts):
        metrics.step(
            action=("applied", "clipped", "skipped", "rolled_back")[index % 4],
            loss=float("nan") if index % 4 == 2 else 1.0 / (index + 1),
            grad_norm=1.0 + index,
            clip_threshold=4.0,
            clip_coef=0.5,
            learning_rate=0.1,
            guard_seconds=0.002,
            update_norm=0.01,
            layers={"conv.weight": 1.0, "fc.weight": 2.0},
            local_norms=[1.0, 2.0],
            regularization={"anchor_l2": 0.01},
        )
    metrics.anomaly(signal="loss", verdict="nonfinite")
    metrics.rollback(source="memory", seconds=0.02, steps_lost=3)
    metrics.rollback(source="disk", seconds=2.0, steps_lost=30)


@pytest.mark.parametrize("panel", panels())
def test_a_panel_has_a_unit_a_description_and_a_legend(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert len(panel["description"]) > 20
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("panel", panels())
def test_a_panel_shows_one_job_of_the_data_source_that_was_chosen(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        selectors = re.findall(r"gradguard_\w+(\{[^}]*\})?", target["expr"])
        assert selectors
        assert all('job="$job"' in selector for selector in selectors)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_their_own_number_and_place(path: Path) -> None:
    dashboard = load(path)
    numbers = [panel["id"] for panel in dashboard["panels"]]
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(numbers)) == len(numbers)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_variables_are_the_data_source_and_the_job() -> None:
    for dashboard in map(load, DASHBOARDS):
        variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert variables["datasource"]["query"] == "prometheus"
        assert variables["job"]["query"]["query"] == "label_values(gradguard_steps_total, job)"


def test_dashboards_and_rules_use_only_names_that_are_exported() -> None:
    hub, metrics = Hub(0), GuardMetrics(job=JOB)
    play(metrics, 4)
    hub.push(JOB, metrics.snapshot(), {}, [])
    registry = CollectorRegistry()
    metrics.register(registry)
    registry.register(hub)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    exported = {sample.name for family in families for sample in family.samples}
    hub.close()
    used = set().union(*map(names_in, [*queries(), *rule_expressions()]))
    assert used <= exported


def test_provisioning_loads_the_dashboards_from_the_folder_the_readme_names() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "gradguard.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] in (DEPLOY / "README.md").read_text()


def test_the_data_source_knows_the_scrape_interval() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(probe: Callable[[], bool], what: str) -> None:
    pause, end = threading.Event(), time.monotonic() + DEADLINE_S
    while not probe():
        assert time.monotonic() < end, f"not within {DEADLINE_S} s: {what}"
        pause.wait(0.1)


class Prometheus:
    """A real server on our own configuration, with only the target and the interval replaced."""

    def __init__(self, folder: Path, target: str) -> None:
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(DEPLOY / "prometheus" / "rules.yml")]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
            )

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}{path}?{query}", timeout=30) as response:
            return json.load(response)["data"]

    def series(self, expression: str) -> list[Any]:
        try:
            return self.get("/api/v1/query", query=expression)["result"]
        except urllib.error.URLError:
            return []

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus that has seen a job at work: at least two scrapes with more steps in the later one."""
    hub, metrics = Hub(0), GuardMetrics(job=JOB, info={"model": "resnet18"})
    hub.push(JOB, metrics.snapshot(), {"phase": "training"}, [])
    target = urllib.parse.urlsplit(hub.address()).netloc
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), target)

    def scraped(expression: str) -> bool:
        return bool(server.series(expression))

    try:
        eventually(lambda: scraped(f'gradguard_steps_total{{job="{JOB}"}}'), "the first scrape")
        play(metrics, 8)
        hub.push(JOB, metrics.snapshot(), {"phase": "training"}, [])
        eventually(lambda: scraped(f'increase(gradguard_rollbacks_total{{job="{JOB}"}}[1m]) > 0'), "a second")
        yield server
    finally:
        server.stop()
        hub.close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
class TestLive:
    @pytest.mark.parametrize("query", queries())
    def test_a_query_of_a_dashboard_finds_series(self, prometheus: Prometheus, query: str) -> None:
        result = prometheus.series(query)
        assert result
        assert all(series["value"][1] != "NaN" for series in result)

    def test_the_job_variable_lists_the_job(self, prometheus: Prometheus) -> None:
        jobs = prometheus.get("/api/v1/label/job/values", **{"match[]": "gradguard_steps_total"})
        assert jobs == [JOB]

    def test_the_target_is_up_under_the_name_of_the_scrape_job(self, prometheus: Prometheus) -> None:
        assert [series["value"][1] for series in prometheus.series('up{job="gradguard"}')] == ["1"]

    def test_the_alerts_of_what_happened_fire_and_no_others(self, prometheus: Prometheus) -> None:
        def firing() -> set[tuple[str, str | None]]:
            return {
                (alert["labels"]["alertname"], alert["labels"].get("signal"))
                for alert in prometheus.get("/api/v1/alerts")["alerts"]
                if alert["state"] == "firing"
            }

        expected = {("GradGuardRollback", None), ("GradGuardNonFinite", "loss")}
        eventually(lambda: firing() == expected, "the two alerts")
