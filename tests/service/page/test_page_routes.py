"""What the page is served with and what it asks for: its files, streams, and the check of a spec."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from guard.rows import JsonlWriter
from service.api import Limits
from service.page.cluster_routes import occupancy
from service.page.list_stream import ListLive
from service.page.static_files import STATIC
from service.page.streams import JobLive
from service.reconcile.log_spool import log_path
from service.reconcile.ray_api import Capacity
from service.store import NoSuchJob
from tests.jobs.report.report_fixture import rows, write_job
from tests.service.api.api_fixture import SPEC, Api, problem
from tests.service.page.page_fixture import play

VALID = "name: digits\ndata:\n  dataset: digits\ntrain:\n  max_steps: 10\n"


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def test_the_files_are_in_the_package_and_every_one_is_served(api: Api) -> None:
    names = {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file()}
    assert {"index.html", "app.js", "style.css", "icon.svg", "vendor/uPlot.iife.min.js"} <= names
    client = api.client(None)
    for name in names - {"index.html"} | {"colors.css"}:
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200, name
        again = client.get(f"/page/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for missing in ("index.html", "..%2Ffiles.py", "vendor/../app.py", "vendor", "nothing.js", "__init__.py"):
        assert client.get(f"/page/{missing}").status_code == 404


def test_the_wheel_takes_every_file_of_the_page() -> None:
    root = Path(__file__).resolve().parents[3]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["service"]
    taken = {path for pattern in patterns for path in (root / "service").glob(pattern)}
    assert taken.issuperset((root / "service" / "page" / "static").rglob("*"))


def test_scripts_name_only_files_that_are_there_and_no_other_host() -> None:
    texts = {path.name: path.read_text("utf-8") for path in STATIC.glob("*.*")}
    for name, text in texts.items():
        bare = text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in bare, name
        assert "https:" not in bare, name
        assert "innerHTML" not in text, name
        imported = [line.split('"')[-2] for line in text.splitlines() if line.startswith("import ")]
        assert all(path.removeprefix("/page/") in texts for path in imported), name


def test_the_vendored_library_comes_with_its_version_and_its_licence() -> None:
    script = (STATIC / "vendor" / "uPlot.iife.min.js").read_text()
    assert re.match(r"/\*! https://github.com/leeoniya/uPlot \(v\d+\.\d+\.\d+\) \*/", script)
    assert (STATIC / "vendor" / "uPlot.LICENSE.txt").read_text().startswith("The MIT License")
    assert not re.search(r"innerHTML|insertRule|cssText|eval\(|new Function", script), "the policy forbids it"


@pytest.mark.parametrize("path", ["/", "/submit", "/compare", "/replay", "/jobs/some-job"])
def test_each_place_is_the_same_document_under_a_strict_policy(api: Api, path: str) -> None:
    answer = api.client(None).get(path)
    assert answer.status_code == 200
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert 'content="asked"' in answer.text
    assert "<script>" not in answer.text
    assert "style=" not in answer.text


def test_the_page_learns_who_asks(api: Api) -> None:
    assert api.client("read").get("/v1/me").json() == {"name": "read", "scope": "read", "tokens": True}
    assert api.client(None).get("/v1/me").status_code == 401


def checked(api: Api, text: str) -> dict[str, Any]:
    answer = api.client("submit").post("/v1/specs/check", json={"text": text})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_valid_spec_comes_back_as_what_is_submitted(api: Api) -> None:
    found = checked(api, VALID)
    assert found["faults"] == []
    assert found["wants"] == "1 worker, 1 CPU"
    assert api.client("submit").post("/v1/jobs", json={"spec": found["spec"]}).status_code == 201
    assert api.client("read").post("/v1/specs/check", json={"text": VALID}).status_code == 403


@pytest.mark.parametrize(
    ("text", "path", "line", "says"),
    [
        (VALID + "optimzer:\n  lr: 1\n", "optimzer", 6, 'did you mean "optimizer"'),
        (VALID + "optimizer:\n  name: sgd\n  lr: -1\n", "optimizer.lr", 8, "= -1: "),
        (VALID + "scale:\n  workers: three\n", "scale.workers", 7, 'three"'),
        (VALID + "storage: /etc\n", "storage", 6, "must be below the storage folder"),
        (VALID + "optimizer: {name: sgd, name: adam}\n", "", 6, "given twice"),
        (VALID + "  - x\n", "", 6, "is not valid YAML"),
        (VALID + "workload: mine:Job\noptions:\n  api_key: '********'\n", "options.api_key", 8, "write it"),
        ("# nothing\n", "", None, "nothing but comments"),
        ("", "", None, "is empty"),
        ("seed: .nan\n", "seed", 1, "must be a finite number"),
        ("- " * 5000, "", None, "nested too deeply"),
    ],
)
def test_a_fault_has_its_field_and_its_line(api: Api, text: str, path: str, line: int, says: str) -> None:
    faults = checked(api, text)["faults"]
    places = [(fault["path"], fault["line"]) for fault in faults]
    assert (path, line) in places, faults
    assert says in faults[places.index((path, line))]["message"]
    assert not faults[0]["message"].startswith((path + ":") if path else "spec:"), (
        "it is shown beside the message"
    )


def test_every_example_can_be_chosen_and_is_valid(api: Api) -> None:
    examples = api.client("read").get("/v1/specs/examples").json()
    assert {"fashion", "gpt-cpu"} <= {example["name"] for example in examples}
    for example in examples:
        assert example["title"]
        assert checked(api, example["text"])["faults"] == [], example["name"]


def test_a_job_is_cloned_without_its_secrets_and_defaults(api: Api) -> None:
    spec = {**SPEC, "storage": "team"}
    env = {"DEPTH": "3", "API_KEY": "hunter2hunter2", "STORE": "s3://id:hunter2hunter2@bucket"}
    job = api.submitted(spec=spec, env=env, priority=7)
    draft = api.client("submit").get(f"/v1/jobs/{job}/draft").json()
    assert draft["env"] == {"DEPTH": "3"}
    assert sorted(draft["secrets"]) == ["API_KEY", "STORE"]
    assert draft["priority"] == 7
    assert "hunter2" not in json.dumps(draft)
    assert len(draft["text"].splitlines()) < 10, draft["text"]
    again = checked(api, draft["text"])
    assert again["faults"] == []
    assert again["spec"]["storage"] == "team"
    assert api.client("read").get(f"/v1/jobs/{job}/draft").status_code == 403
    play(api, "adopted", "running", spec=None)
    assert "cannot be cloned" in problem(api.client("submit").get("/v1/jobs/adopted/draft"))


def test_each_poll_of_a_job_has_only_what_is_new(api: Api) -> None:
    play(api, "live", "running")
    poll = JobLive(api.context, "live").poll
    assert [kind for kind, _ in poll()] == ["job"]
    folder, history = api.root / "runs" / "live", [row for row in rows(60) if "action" in row]
    with JsonlWriter(folder / "metrics.jsonl") as writer:
        for row in history[:50]:
            writer.write(row)
        found = dict(poll())
        assert found["history"]["columns"]["attempt"] == [row["attempt"] for row in history[:50]]
        assert poll() == []
        for row in history[50:]:
            writer.write(row)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"attempt": 61, "action"')  # a row that is being written
    assert dict(poll())["steps"]["columns"]["attempt"] == [row["attempt"] for row in history[50:]]
    write_job(folder)  # started over, with incidents
    found = dict(poll())
    log_path(api.root, "live").parent.mkdir(parents=True)
    log_path(api.root, "live").write_bytes("straße".encode()[:5])
    assert dict(poll())["log"] == {"text": "stra"}, "half a letter waits for its other half"
    log_path(api.root, "live").write_bytes("straße".encode())
    assert dict(poll())["log"] == {"text": "ße"}
    api.context.store.delete("live", lambda _: None)
    with pytest.raises(NoSuchJob):
        poll()


def test_an_incident_comes_with_its_story_and_its_evidence(api: Api) -> None:
    play(api, "hurt", "running")
    write_job(api.root / "runs" / "hurt")
    sent = dict(JobLive(api.context, "hurt").poll())["incidents"]
    assert sent["total"] == 2
    second = sent["shown"][1]
    assert (second["anchor"], second["badge"]) == ("incident-2", "Recovered")
    assert second["evidence"]["layers"][0]["name"] == "layer4.1.conv2.weight"
    assert any("rolled back 26 steps" in line for line in second["story"])
    assert second["advice"].startswith("Nothing to do: the run recovered")
    assert len(second["evidence"]["window"]) > 1


def test_samples_that_come_back_are_sent_with_their_content(api: Api) -> None:
    play(api, "dirty", "running")
    folder = api.root / "runs" / "dirty"
    folder.mkdir(parents=True)
    bad = {"sample": 7, "rank": 0, "loss": 9.0, "share": 0.9, "content": "cat.png, label 3"}
    row = {"type": "incident", "job": "dirty", "verdict": "spike", "signal": "loss", "action": "skipped"}
    with JsonlWriter(folder / "incidents.jsonl") as writer:
        for id_, samples in ((1, [bad]), (2, [{**bad, "sample": 8}]), (3, [bad])):
            writer.write({**row, "id": id_, "attempt": id_, "step": id_, "bad_samples": samples})
    sent = dict(JobLive(api.context, "dirty").poll())["incidents"]
    worst = sent["offenders"][0]
    assert (worst["sample"], worst["times"], worst["steps"]) == (7, 2, "1, 3")
    assert worst["content"] == "cat.png, label 3"
    assert sent["more_offenders"] == 0


def test_evaluations_come_with_the_steps_and_alone(api: Api) -> None:
    play(api, "measured", "running")
    poll, folder = JobLive(api.context, "measured").poll, api.root / "runs" / "measured"
    history = [*rows(60)]
    with JsonlWriter(folder / "metrics.jsonl") as writer:
        for row in history:
            writer.write(row)
        found = dict(poll())["history"]["evaluations"]
        assert [e["metrics"]["test_accuracy"] for e in found] == [0.842, 0.881]
        writer.write({"attempt": history[-1]["attempt"], "step": 60, "eval": {"test_accuracy": 0.9}})
    update = dict(poll())["steps"]
    assert update["columns"]["attempt"] == []
    assert update["evaluations"][0]["metrics"] == {"test_accuracy": 0.9}


def test_the_spec_is_sent_with_what_differs_from_the_defaults(api: Api) -> None:
    job = api.submitted(spec={**SPEC, "optimizer": {"name": "sgd", "lr": 0.07}})
    parts = dict(JobLive(api.context, job).poll())["job"]["spec_parts"]
    assert "lr: 0.07" in parts["changed"]
    assert "max_steps: 10" in parts["changed"]
    assert "cpus_per_worker" not in parts["changed"]
    assert "cpus_per_worker" in parts["whole"]


def test_the_queue_and_what_the_cluster_has_in_use(api: Api) -> None:
    play(api, "trains", "running", cpus=3.0, gpus=1.0)
    play(api, "late", "waiting", reason="waiting for 2 GPUs, 1 free", priority=1)
    play(api, "urgent", "queued", priority=5)
    found = api.client("read").get("/v1/cluster").json()
    assert (found["training"], found["waiting"]) == (1, 2)
    assert [job["id"] for job in found["queue"]] == ["urgent", "late"]
    assert found["resources"] == []
    assert found["problem"] == "this service has no cluster"
    capacity = Capacity([{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0}], {"CPU": 1.0, "GPU": 2.0})
    used = {
        each.name: (each.used, each.total) for each in occupancy(capacity, [api.context.store.get("trains")])
    }
    assert used == {"GPU": (2.0, 2.0), "CPU": (3.0, 8.0)}
    assert api.client(None).get("/v1/cluster").status_code == 401


def test_a_damaged_checkpoint_is_shown_too(api: Api) -> None:
    play(api, "kept", "running")
    broken = write_job(api.root / "runs" / "kept") / "checkpoints" / "step-00000010"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    sent = dict(JobLive(api.context, "kept").poll())["checkpoints"]
    assert [(c["name"], c["health"]) for c in sent["shown"]] == [("step-00000010", "damaged")]


def test_the_list_sends_what_changed(api: Api) -> None:
    play(api, "first", "running")
    play(api, "second", "waiting", reason="waiting for 2 GPUs, 1 free")
    poll = ListLive(api.context, [], None, 50).poll
    ((_, sent),) = poll()
    assert sent["order"] == ["second", "first"]
    assert [job["reason"] for job in sent["changed"]] == ["waiting for 2 GPUs, 1 free", ""]
    assert poll() == []
    write_job(api.root / "runs" / "first")
    ((_, sent),) = poll()
    assert [job["id"] for job in sent["changed"]] == ["first"]
    assert sent["changed"][0]["progress"]["step"] == 240
    assert len(sent["changed"][0]["spark"]["loss"]) > 20
    assert (sent["changed"][0]["accuracy"], sent["changed"][0]["incidents"]) == (0.881, 2)
    waiting = ListLive(api.context, ["waiting"], "sec", 50).poll()
    assert waiting[0][1]["order"] == ["second"]


def test_streams_need_a_token_and_end_in_time(tmp_path: Path) -> None:
    api = Api(tmp_path, limits=Limits(follow_s=0.1))
    play(api, "one", "running")
    for path in ("/v1/live", "/v1/jobs/one/live"):
        assert api.client(None).get(path).status_code == 401
        answer = api.client("read").get(path)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "event: job" in answer.text
    assert api.client("read").get("/v1/jobs/none/live").status_code == 404
