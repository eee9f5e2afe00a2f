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
from prometheus_client.parser import text_string_to_metric_families as parse
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

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

OF_JOBS = [path for path in DASHBOARDS if path.stem != "gradguard-cluster"]

per_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def panels(paths: list[Path] = DASHBOARDS) -> list[Any]:
    return [
        pytest.param(panel, id=f"{path.stem}-{panel['id']}-{panel['title']}")
        for path in paths
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


def test_there_is_one_for_the_cluster_the_fleet_a_job_and_an_incident() -> None:
    kinds = ("cluster", "fleet", "incident", "job")
    assert [path.stem for path in DASHBOARDS] == [f"gradguard-{kind}" for kind in kinds]
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


@pytest.mark.parametrize("panel", panels(OF_JOBS))
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


@pytest.mark.parametrize("path", OF_JOBS, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("panel", panels(OF_JOBS))
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
    menu, *others = load(path)["links"]
    assert menu["type"] == "dashboards"
    assert {link["type"] for link in others} <= {"link"}
    assert menu["includeVars"]
    assert menu["keepTime"]
    assert all(menu["tags"] == load(other)["tags"] for other in DASHBOARDS)


def test_a_row_of_the_fleet_opens_the_dashboard_of_its_job() -> None:
    fleet, job = (load(path) for path in (DASHBOARDS[1], DASHBOARDS[3]))
    (table,) = [panel for panel in fleet["panels"] if panel["type"] == "table"]
    (link,) = table["fieldConfig"]["defaults"]["links"]
    assert link["url"] == f"/d/{job['uid']}?var-job=${{__data.fields.job}}&${{__url_time_range}}"
    assert "job" in [variable["name"] for variable in job["templating"]["list"]]


@pytest.mark.parametrize("name", ["gradguard-job", "gradguard-incident"])
def test_a_job_is_one_click_from_its_page_and_its_report(name: str, tmp_path: Path) -> None:
    dashboard = load(DEPLOY / "grafana" / "dashboards" / f"{name}.json")
    api = Api(tmp_path, auth=False)
    job = api.submitted()
    (service,) = [v for v in dashboard["templating"]["list"] if v["name"] == "service"]
    assert service["query"] == "http://127.0.0.1:8410", "where the service listens by default"
    folder = Path(api.context.store.get(job).folder or "")
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    for link in dashboard["links"][1:]:
        path = link["url"].removeprefix("${service}").replace("${job}", job)
        assert api.client(None).get(path).status_code == 200, link["title"]


def test_what_waits_and_why_and_who_owns_it_is_in_the_services_metrics(tmp_path: Path) -> None:
    api = Api(tmp_path)
    waiting, running, ended = (api.submitted() for _ in range(3))
    reason = "waiting for 8 GPUs, 2 free"
    states = {waiting: ("waiting", reason), running: ("running", ""), ended: ("failed", "")}
    for job, state in states.items():
        api.context.store.change(job, lambda row, state=state: _set(row, *state))
    families = {f.name: f.samples for f in parse(api.client("read").get("/metrics").text)}
    of_job = {s.labels["job"]: s.labels for s in families["gradguard_service_job_info"]}
    assert {job: (found["owner"], found["status"]) for job, found in of_job.items()} == {
        waiting: ("admin", "waiting"),
        running: ("admin", "running"),
    }
    (sample,) = families["gradguard_service_job_waiting_seconds"]
    assert (sample.labels["job"], sample.labels["reason"]) == (waiting, reason)
    assert sample.value >= 0


def _set(row: Any, state: str, reason: str) -> str:
    row.state, row.reason = state, reason
    return state


def test_the_panels_of_nodes_use_metrics_that_ray_exports_with_these_labels() -> None:
    exported_by_ray = {
        f"ray_{gauge.name}": {str(key) for key in gauge.view.columns} for gauge in METRICS_GAUGES.values()
    }
    expressions_of_nodes = [e for e in expressions(load(DASHBOARDS[0])) if "ray_node" in e]
    assert len(expressions_of_nodes) == 4
    for expression in expressions_of_nodes:
        names = re.findall(r"ray_node_\w+", expression)
        assert names
        wanted = set(", ".join(re.findall(r"by \(([^)]*)\)", expression)).split(", "))
        assert all(wanted <= exported_by_ray[name] for name in names), expression


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
