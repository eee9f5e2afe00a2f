"""The dashboards: valid, linked, and every panel explains itself.

test_monitoring.py runs every query against a real Prometheus.
"""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from guard.record.exposition import FAMILIES
from jobs.observability.hub_server import HUB_FAMILIES
from tests.service.api.api_fixture import Api

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
PROVISIONING = DEPLOY / "grafana" / "provisioning"
SCHEMAS = json.loads(Path(__file__).with_name("grafana_schemas.json").read_text())
"""Published by Grafana (Apache-2.0): jsonschema/ of its repository grafana-foundation-sdk, branch v11.6.x."""

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {"short", "ops", "percentunit", "s", "bytes"}
"""Of Grafana's list of units those in use; Grafana shows an unknown one as bare text."""

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


def test_there_is_one_for_the_fleet_one_for_a_job_and_one_for_an_incident() -> None:
    assert [path.stem for path in DASHBOARDS] == ["gradguard-fleet", "gradguard-incident", "gradguard-job"]
    assert all(load(path)["uid"] == path.stem for path in DASHBOARDS)


@per_dashboard
def test_a_fresh_grafana_takes_a_dashboard_as_its_own(path: Path) -> None:
    dashboard = load(path)
    assert dashboard["schemaVersion"] == 41  # Grafana 11 migrates older ones and reads its own
    assert not {"id", "version", "__inputs", "__requires"} & dashboard.keys()  # of one installation
    assert dashboard["title"].startswith("GradGuard: ")
    assert dashboard["editable"]
    for panel in dashboard["panels"]:
        assert panel["type"] in ("stat", "table", "timeseries", "xychart"), panel["title"]
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)
        for target in panel["targets"]:
            assert target["instant"] != target["range"]
            assert target["instant"] == (panel["type"] in ("stat", "table"))


@per_dashboard
def test_a_file_has_the_format_that_grafana_exports(path: Path) -> None:
    assert path.read_text() == json.dumps(load(path), indent=2, ensure_ascii=False) + "\n"


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
    published = SCHEMAS[schema]
    assert definition in published["definitions"]
    validator = jsonschema.Draft7Validator({**published, "$ref": f"#/definitions/{definition}"})
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)] == []


@pytest.mark.parametrize("panel", panels())
def test_a_panel_has_a_unit_a_description_and_a_legend(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert len(panel["description"]) > 20
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("panel", panels())
def test_a_panel_shows_the_chosen_job_from_the_chosen_data_source(panel: dict[str, Any]) -> None:
    assert panel["datasource"] == SOURCE
    for target in panel["targets"]:
        assert target.get("datasource", SOURCE) == SOURCE  # without one of its own it asks the panel's
        if "ALERTS" in target["expr"]:
            continue  # of all jobs
        selectors = re.findall(r"\{[^}]*\}", target["expr"])
        names = re.findall(r"[\w:]*gradguard_[a-z][\w:]*", target["expr"])
        assert len(selectors) >= max(1, len(names))
        assert all(re.search(r'job=~?"\$job"', selector) for selector in selectors)


@per_dashboard
def test_panels_have_their_own_number_title_and_place(path: Path) -> None:
    dashboard = load(path)
    numbers = [panel["id"] for panel in dashboard["panels"]]
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)
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
    assert variables["datasource"]["type"] == "datasource"
    asked = [*variables.values(), *load(path).get("annotations", {}).get("list", [])]
    assert {str(query["datasource"]) for query in asked if "datasource" in query} == {str(SOURCE)}
    assert variables["job"]["query"].startswith("label_values(gradguard_")
    assert ("rank" in variables) == ("$rank" in path.read_text())
    assert ("rank" in variables) == (path.stem != "gradguard-fleet")


@pytest.mark.parametrize("name", ["gradguard-job", "gradguard-incident"])
def test_incidents_are_marked_on_the_graphs(name: str) -> None:
    marks = load(DEPLOY / "grafana" / "dashboards" / f"{name}.json")["annotations"]["list"]
    assert [mark["name"] for mark in marks] == ["Rollback", "Spike", "Not finite"]
    assert all(mark["enable"] and '{job="$job"' in mark["expr"] for mark in marks)


def test_dashboards_and_rules_use_only_names_that_are_exported_or_recorded(tmp_path: Path) -> None:
    served = Api(tmp_path, auth=False).client(None).get("/metrics").text
    of_service = set(re.findall(r"^# TYPE (\w+)", served, re.MULTILINE))
    known = exported() | of_service | {rule["record"] for rule in recorded() if "record" in rule}
    texts = [expr for path in DASHBOARDS for expr in expressions(load(path))]
    texts += [rule["expr"] for rule in recorded()]
    used = {name for text in texts for name in re.findall(r"[\w:]*gradguard_[a-z][\w:]*", text)}
    assert used <= known


def labels() -> dict[str, set[str]]:
    """Of every exported metric, and of what the rules record, whose names begin with their labels."""
    known = {
        f"{family.exported}{part}": {"job", "le", *family.labels} if part else {"job", *family.labels}
        for family in (*FAMILIES, *HUB_FAMILIES)
        for part in ("", "_bucket", "_sum", "_count")
    }
    names = [rule["record"] for rule in recorded() if "record" in rule]
    return known | {name: set(name.partition(":")[0].split("_")) for name in names}


@pytest.mark.parametrize("panel", panels())
def test_a_panel_asks_for_labels_that_its_metrics_have(panel: dict[str, Any]) -> None:
    known = labels()
    for target in panel["targets"]:
        there: set[str] = set()
        for name, selector in re.findall(r"([\w:]*gradguard_[a-z][\w:]*)\{([^}]*)\}", target["expr"]):
            assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selector)) <= known[name], name
            there |= known[name]
        for grouped in re.findall(r"by \(([^)]*)\)", target["expr"]):
            assert set(grouped.split(", ")) <= there
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= there | {"__name__"}


@per_dashboard
def test_every_dashboard_is_one_click_from_the_others(path: Path) -> None:
    (menu,) = load(path)["links"]
    assert menu["type"] == "dashboards"
    assert menu["includeVars"]
    assert menu["keepTime"]
    assert all(menu["tags"] == load(other)["tags"] for other in DASHBOARDS)


def test_a_row_of_the_fleet_opens_the_dashboard_of_its_job() -> None:
    fleet, job = (load(path) for path in (DASHBOARDS[0], DASHBOARDS[2]))
    (table,) = [panel for panel in fleet["panels"] if panel["type"] == "table"]
    (link,) = table["fieldConfig"]["defaults"]["links"]
    assert link["url"] == f"/d/{job['uid']}?var-job=${{__data.fields.job}}&${{__url_time_range}}"
    assert "job" in [variable["name"] for variable in job["templating"]["list"]]


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
