"""The dashboards: what the generator makes, valid, and every panel explains itself.

That every query finds series in a real Prometheus is in test_monitoring.py.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from guard.record.exposition import FAMILIES
from jobs.observability.hub_server import HUB_FAMILIES
from service.dashboards.__main__ import rendered

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
PROVISIONING = DEPLOY / "grafana" / "provisioning"
SCHEMAS = os.environ.get("GRADGUARD_GRAFANA_SCHEMAS")
"""The folder jsonschema/ of Grafana's repository grafana-foundation-sdk, branch v11.6.x."""

per_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def panels() -> list[Any]:
    return [
        pytest.param(panel, id=f"{path.stem}-{panel['id']}-{panel['title']}")
        for path in DASHBOARDS
        for panel in load(path)["panels"]
    ]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """Of the panels and the annotations."""
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return found + [mark["expr"] for mark in dashboard.get("annotations", {}).get("list", [])]


def recorded() -> list[dict[str, Any]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def exported() -> set[str]:
    names: set[str] = set()
    for family in (*FAMILIES, *HUB_FAMILIES):
        parts = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        names |= {f"{family.exported}{part}" for part in parts}
    return names


def test_the_files_are_what_the_generator_makes() -> None:
    assert {path.name: path.read_text() for path in DASHBOARDS} == rendered(), "python -m service.dashboards"


def test_there_is_one_for_the_fleet_one_for_a_job_and_one_for_an_incident() -> None:
    assert [path.stem for path in DASHBOARDS] == ["gradguard-fleet", "gradguard-incident", "gradguard-job"]
    assert all(load(path)["uid"] == path.stem for path in DASHBOARDS)


@per_dashboard
def test_the_sdk_reads_a_dashboard_as_its_own_types_and_writes_the_same(path: Path) -> None:
    register_default_plugins()
    again = json.loads(json.dumps(Dashboard.from_json(load(path)), cls=JSONEncoder))
    assert again == load(path)


@pytest.mark.skipif(SCHEMAS is None, reason="GRADGUARD_GRAFANA_SCHEMAS is not set")
@per_dashboard
def test_a_dashboard_fulfils_the_schemas_that_grafana_publishes(path: Path) -> None:
    dashboard = load(path)
    check(dashboard, "dashboard", "Dashboard")
    for panel in dashboard["panels"]:
        kind = panel["type"]
        check(panel["options"], kind, "Options")
        if kind != "stat":
            check(panel["fieldConfig"]["defaults"].get("custom", {}), kind, "FieldConfig")
        for target in panel["targets"]:
            check(target, "prometheus", "dataquery")


def check(content: Any, schema: str, definition: str) -> None:
    """Also refuses fields that the schema does not know."""
    assert SCHEMAS is not None
    published = json.loads(Path(SCHEMAS, f"{schema}.jsonschema.json").read_text())
    assert definition in published["definitions"]
    validator = jsonschema.Draft7Validator({**published, "$ref": f"#/definitions/{definition}"})
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)] == []


@pytest.mark.parametrize("panel", panels())
def test_a_panel_has_a_unit_a_description_and_a_legend(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert len(panel["description"]) > 20
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("panel", panels())
def test_a_panel_shows_the_chosen_job_from_the_chosen_data_source(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        if "ALERTS" in target["expr"]:
            continue  # of all jobs
        selectors = re.findall(r"\{[^}]*\}", target["expr"])
        names = re.findall(r"[\w:]*gradguard_[a-z][\w:]*", target["expr"])
        assert len(selectors) >= max(1, len(names))
        assert all(re.search(r'job=~?"\$job"', selector) for selector in selectors)


@per_dashboard
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
    assert max(x for x, _ in cells) == 23


@per_dashboard
def test_a_dashboard_asks_for_the_job_and_where_it_matters_for_ranks(path: Path) -> None:
    variables = {variable["name"]: variable for variable in load(path)["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["job"]["query"].startswith("label_values(gradguard_")
    assert ("rank" in variables) == ("$rank" in path.read_text())
    assert ("rank" in variables) == (path.stem != "gradguard-fleet")


@pytest.mark.parametrize("name", ["gradguard-job", "gradguard-incident"])
def test_incidents_are_marked_on_the_graphs(name: str) -> None:
    marks = load(DEPLOY / "grafana" / "dashboards" / f"{name}.json")["annotations"]["list"]
    assert [mark["name"] for mark in marks] == ["Rollback", "Spike", "Not finite"]
    assert all(mark["enable"] and '{job="$job"' in mark["expr"] for mark in marks)


def test_dashboards_and_rules_use_only_names_that_are_exported_or_recorded() -> None:
    known = exported() | {rule["record"] for rule in recorded() if "record" in rule}
    texts = [expr for path in DASHBOARDS for expr in expressions(load(path))]
    texts += [rule["expr"] for rule in recorded()]
    used = {name for text in texts for name in re.findall(r"[\w:]*gradguard_[a-z][\w:]*", text)}
    assert used <= known


def test_every_metric_of_the_guard_is_shown_somewhere() -> None:
    everything = "".join(expr for path in DASHBOARDS for expr in expressions(load(path)))
    everything += "".join(rule["expr"] for rule in recorded())
    not_shown = {family.exported for family in FAMILIES if family.exported not in everything}
    assert not_shown == {
        "gradguard_job_info",
        "gradguard_clip_coefficient",
        "gradguard_micro_batches_dropped_total",
        "gradguard_checkpoint_failures_total",
        "gradguard_checkpoint_last_step",
        *(f"gradguard_{what}_{how}" for what in ("samples", "tokens") for how in ("accepted", "total")),
    }


def test_provisioning_loads_the_dashboards_from_the_folder_the_readme_names() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "gradguard.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["folder"] == "GradGuard"
    assert provider["options"]["path"] in (DEPLOY / "README.md").read_text()


def test_the_data_source_knows_the_scrape_interval() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
