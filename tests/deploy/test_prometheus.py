"""The Prometheus files: they parse, scrape the hub, and their alerts fire when they should and only then."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.hub import DEFAULT_PORT, ENDED_KEPT_S
from jobs.spec import JobSpec

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
RULES = DEPLOY / "prometheus" / "rules.yml"

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Prometheus) is not installed"
)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def alerts() -> list[dict[str, Any]]:
    return [rule for group in load(RULES)["groups"] for rule in group["rules"]]


def run_promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def test_the_scrape_job_finds_the_hub_where_jobs_start_it_by_default() -> None:
    (scrape,) = load(CONFIG)["scrape_configs"]
    metrics = JobSpec.from_dict({"name": "any"}).metrics
    assert scrape["job_name"] == "gradguard"
    assert scrape["static_configs"] == [{"targets": [f"{metrics.host}:{metrics.port}"]}]
    assert metrics.port == DEFAULT_PORT


def test_the_training_jobs_name_survives_the_scrape() -> None:
    (scrape,) = load(CONFIG)["scrape_configs"]
    assert scrape["honor_labels"] is True


def test_the_rules_are_loaded_by_the_config() -> None:
    assert [CONFIG.parent / name for name in load(CONFIG)["rule_files"]] == [RULES]


def test_every_alert_has_a_severity_a_summary_and_a_description() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("warning", "critical"), alert["alert"]
        assert alert["annotations"].keys() == {"summary", "description"}, alert["alert"]


def test_no_alert_looks_further_back_than_an_ended_job_is_served() -> None:
    for alert in alerts():
        minutes = [int(found) for found in re.findall(r"\[(\d+)m\]", alert["expr"])]
        assert all(60 * window <= ENDED_KEPT_S for window in minutes), alert["alert"]


def test_every_alert_has_a_unit_test() -> None:
    cases = load(Path(__file__).with_name("rules_test.yml"))["tests"]
    fired = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check["exp_alerts"]}
    assert fired == {alert["alert"] for alert in alerts()}


@promtool
@pytest.mark.parametrize("arguments", [("check", "config", CONFIG), ("check", "rules", RULES)])
def test_prometheus_accepts_the_files(arguments: tuple[str | Path, ...]) -> None:
    done = run_promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = run_promtool("test", "rules", Path(__file__).with_name("rules_test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
