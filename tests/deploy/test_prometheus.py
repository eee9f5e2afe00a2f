"""The Prometheus files: they parse, scrape the hub, and their alerts fire when they should and only then."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from jobs.cluster.driver import metrics_host
from jobs.observability.hub import DEFAULT_PORT, ENDED_KEPT_S
from jobs.spec.job_spec import JobSpec

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
RULES = DEPLOY / "prometheus" / "rules.yml"

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Prometheus) is not installed"
)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for group in load(RULES)["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def run_promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def test_the_scrape_job_finds_the_hub_where_jobs_start_it_by_default() -> None:
    scrape, _ = load(CONFIG)["scrape_configs"]
    metrics = JobSpec.from_dict({"name": "any"}).metrics
    assert scrape["job_name"] == "gradguard"
    host = metrics_host(JobSpec.from_dict({"name": "any"}))
    assert scrape["static_configs"] == [{"targets": [f"{host}:{metrics.port}"]}]
    assert metrics.port == DEFAULT_PORT


def test_the_training_jobs_name_survives_the_scrape() -> None:
    scrape, _ = load(CONFIG)["scrape_configs"]
    assert scrape["honor_labels"] is True


def test_rays_own_metrics_are_scraped_from_the_list_of_nodes_that_the_head_writes() -> None:
    _, scrape = load(CONFIG)["scrape_configs"]
    (source,) = scrape["file_sd_configs"]
    assert source["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


def test_the_rules_are_loaded_by_the_config() -> None:
    assert [CONFIG.parent / name for name in load(CONFIG)["rule_files"]] == [RULES]


def test_every_alert_has_a_severity_a_summary_and_a_description() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("warning", "critical"), alert["alert"]
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}, alert["alert"]


def test_every_alert_leads_to_its_paragraph_of_the_runbook_and_none_is_left_over() -> None:
    text = (CONFIG.parent / "RUNBOOK.md").read_text()
    paragraphs = dict(re.findall(r"^## (\w+)\n\n(.+?)(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(paragraphs) == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert (DEPLOY.parent / path).samefile(CONFIG.parent / "RUNBOOK.md")
        assert anchor == alert["alert"].lower()
        paragraph = paragraphs[alert["alert"]]
        assert paragraph.startswith(f"*{alert['labels']['severity'].capitalize()}.*")
        assert len(paragraph) > 250


def test_what_is_recorded_is_named_by_its_labels_and_is_used() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    dashboards = "".join(path.read_text() for path in (DEPLOY / "grafana" / "dashboards").glob("*.json"))
    used = dashboards + "".join(alert["expr"] for alert in alerts())
    for name in recorded:
        assert re.fullmatch(r"job(_rank)?:gradguard_\w+(:\w+)?", name)
        assert name in used, name


def test_the_alertmanager_is_asked_where_prometheus_sends() -> None:
    (target,) = load(CONFIG)["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert target == "127.0.0.1:9093"


def test_the_alertmanager_knows_every_alert_that_it_names() -> None:
    config = load(CONFIG.with_name("alertmanager.yml"))
    named = set(re.findall(r"GradGuard\w+", str(config["inhibit_rules"])))
    assert named <= {alert["alert"] for alert in alerts()}


def test_no_alert_looks_further_back_than_an_ended_job_is_served() -> None:
    for alert in alerts():
        minutes = [int(found) for found in re.findall(r"\[(\d+)m\]", alert["expr"])]
        assert all(60 * window <= ENDED_KEPT_S for window in minutes), alert["alert"]


def test_every_alert_is_tested_firing_and_not_firing() -> None:
    cases = load(Path(__file__).with_name("rules_test.yml"))["tests"]
    checks = [check for case in cases for check in case.get("alert_rule_test", [])]
    for fires in (True, False):
        seen = {check["alertname"] for check in checks if bool(check["exp_alerts"]) == fires}
        assert seen == {alert["alert"] for alert in alerts()}


@promtool
@pytest.mark.parametrize("arguments", [("check", "config", CONFIG), ("check", "rules", RULES)])
def test_prometheus_accepts_the_files(arguments: tuple[str | Path, ...]) -> None:
    done = run_promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_prometheus_accepts_the_file_of_compose_with_its_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    copy = tmp_path / "compose.yml"
    copy.write_text(CONFIG.with_name(copy.name).read_text().replace("/etc/gradguard/token", str(token)))
    shutil.copy(RULES, tmp_path)
    done = run_promtool("check", "config", copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool (Alertmanager) is not installed")
def test_alertmanager_accepts_its_file() -> None:
    path = CONFIG.with_name("alertmanager.yml")
    done = subprocess.run(["amtool", "check-config", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = run_promtool("test", "rules", Path(__file__).with_name("rules_test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
