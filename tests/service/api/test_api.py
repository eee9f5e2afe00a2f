"""The HTTP API: who may do what, what is refused with which text, and that no secret leaks."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.client.models import STATUSES
from jobs.cluster.session import PACKAGE_ROOT
from jobs.spec.job_spec import JobSpec
from jobs.spec.masking import Mask, is_secret, masked
from service.api import Limits
from service.api.callers import Buckets
from service.api.view import readable_checkpoints
from service.page.streams import JobLive
from service.reconcile.log_spool import LogSpool, log_path
from tests.service.api.api_fixture import SPEC, Api, problem

EXAMPLES = PACKAGE_ROOT / "jobs" / "examples"


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def test_each_scope_may_do_what_it_includes_and_no_more(api: Api) -> None:
    job = api.submitted()
    allowed = {}
    for scope in (None, "read", "submit", "admin"):
        client = api.client(scope)
        allowed[scope] = [
            client.get("/v1/jobs").status_code,
            client.get("/metrics").status_code,
            client.post(f"/v1/jobs/{job}/stop").status_code,
            client.delete(f"/v1/jobs/{job}").status_code,
        ]
    assert allowed == {
        None: [401, 401, 401, 401],
        "read": [200, 200, 403, 403],
        "submit": [200, 200, 202, 403],
        "admin": [200, 200, 202, 204],
    }
    assert api.client(None).get("/healthz").json()["service"] == "gradguard"


def test_a_revoked_token_is_refused_and_guessing_is_slowed_down(api: Api) -> None:
    client = api.client("read")
    api.context.tokens.revoke("read")
    assert "revoked" in problem(client.get("/v1/jobs"))
    guesser = api.client(None)
    guesser.headers["Authorization"] = "Bearer gg_00000000_guess"
    answers = {guesser.get("/v1/jobs").status_code for _ in range(30)}
    assert answers == {401, 429}


def test_the_same_key_submits_a_job_once(api: Api) -> None:
    client, key = api.client("submit"), {"Idempotency-Key": "k"}
    first = client.post("/v1/jobs", json={"spec": SPEC}, headers=key)
    again = client.post("/v1/jobs", json={"spec": SPEC}, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == f"/v1/jobs/{first.json()['id']}"
    other = client.post("/v1/jobs", json={"spec": {**SPEC, "seed": 2}}, headers=key)
    assert other.status_code == 409
    assert "another request" in problem(other)
    theirs = api.client("admin").post("/v1/jobs", json={"spec": SPEC}, headers=key)
    assert theirs.json()["id"] != first.json()["id"], "keys of two callers are two keys"


def test_secrets_go_in_and_never_come_out(api: Api) -> None:
    spec = {"name": "own", "workload": "mine:Job", "train": {"max_steps": 1}}
    spec["options"] = {"api_key": "hunter2hunter2", "url": "s3://id:hunter2hunter2@bucket/x"}
    job = api.submitted(spec=spec, env={"WANDB_API_KEY": "hunter2hunter2", "DEPTH": "3"})
    client = api.client("read")
    shown = [client.get(f"/v1/jobs/{job}").text, client.get("/v1/jobs").text, client.get("/v1/events").text]
    assert not any("hunter2" in text for text in shown)
    assert json.loads(shown[0])["env"] == {"WANDB_API_KEY": "********", "DEPTH": "3"}
    cloned = api.client().post(f"/v1/jobs/{job}/clone", json={"set": ["optimizer.lr=0.5"]}).json()
    assert cloned["spec"]["optimizer"]["lr"] == 0.5
    assert api.context.store.get(cloned["id"]).env["WANDB_API_KEY"] == "hunter2hunter2"


@pytest.mark.parametrize("cut", [3, 9, 14, 30])
def test_a_secret_is_masked_in_a_log_wherever_the_pieces_are_cut(tmp_path: Path, cut: int) -> None:
    text = "the key is hunter2hunter2, keep it\n" * 3
    spool = LogSpool(tmp_path / "job.log", 0, Mask({"API_KEY": "hunter2hunter2", "HOST": "the key"}))
    for start in range(0, len(text), cut):
        spool.write(text[start : start + cut])
    spool.close()
    kept = (tmp_path / "job.log").read_text()
    assert kept == text.replace("hunter2hunter2", "*" * 14), "the length stays, so offsets do"


def test_names_distinguish_secrets_from_settings() -> None:
    assert all(map(is_secret, ("WANDB_API_KEY", "token", "db_password", "AWS_SECRET_ACCESS_KEY", "apiKey")))
    assert not any(map(is_secret, ("max_tokens_seen", "tokenizer", "keyboard", "monkey", "author")[1:]))
    assert masked({"tokens_per_batch": 4, "nested": [{"password": "x"}]}) == {
        "tokens_per_batch": 4,
        "nested": [{"password": "********"}],
    }


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"spec": {**SPEC, "optimzer": {}}}, 'did you mean "optimizer"'),
        ({"spec": {**SPEC, "storage": "/etc"}}, "must be below the storage folder"),
        ({"spec": {**SPEC, "storage": "../../other"}}, "must be below the storage folder"),
        ({"spec": {**SPEC, "storage": ".service"}}, "must be below the storage folder"),
        ({"spec": SPEC, "env": {"RAY_ADDRESS": "x"}}, "remove it"),
        ({"spec": SPEC, "env": {"A B": "x"}}, "not the name of a variable"),
        ({"spec": SPEC, "working_dir": "0" * 64}, "POST it to /v1/packages"),
        ({"spec": SPEC, "priority": 10**6}, "priority"),
        ({"spec": {**SPEC, "workload": "\ud800"}}, "UTF-8"),
        ({"spec": SPEC, "surprise": 1}, "surprise"),
        ({}, "spec"),
    ],
)
def test_what_is_wrong_with_a_submission_is_reported(api: Api, body: dict[str, Any], says: str) -> None:
    answer = api.client().post(
        "/v1/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert says in problem(answer)


def test_a_submission_imports_nothing_that_it_names(api: Api, tmp_path: Path) -> None:
    (tmp_path / "trap_workload.py").write_text("raise SystemExit('imported')")
    job = api.submitted(spec={"name": "x", "workload": "trap_workload:Trap", "train": {"max_steps": 1}})
    assert api.context.store.get(job).spec is not None


@pytest.mark.parametrize("text", ['"\\0"', '"\\ud800"', ".nan"])
def test_a_change_that_a_database_refuses_is_refused_before_it_gets_there(api: Api, text: str) -> None:
    job = api.submitted(spec={"name": "own", "workload": "mine:Job", "train": {"max_steps": 1}})
    answer = api.client().post(f"/v1/jobs/{job}/clone", json={"set": [f"options.x={text}"]})
    assert answer.status_code == 422, answer.text
    assert len(api.client().get("/v1/jobs").json()["jobs"]) == 1


def test_a_request_too_deep_for_json_is_refused_with_a_key_and_without(api: Api) -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"x": deep}
    for headers in ({}, {"Idempotency-Key": "k"}):
        answer = api.client().post("/v1/jobs", json={"spec": {**SPEC, "options": deep}}, headers=headers)
        assert answer.status_code == 422, answer.text


def test_the_stored_spec_is_the_one_that_its_yaml_describes(api: Api) -> None:
    for path in sorted(EXAMPLES.glob("*.yaml")):
        text = JobSpec.load(path).to_yaml()
        asked = {"spec": yaml.safe_load(text)}
        job = api.client().post("/v1/jobs", json=asked).json()["id"]
        stored = api.context.store.get(job).spec
        assert stored is not None
        assert {**stored, "storage": asked["spec"]["storage"]} == yaml.safe_load(text), path.name


def test_the_page_and_the_api_give_the_same_checkpoints_and_the_same_reason_for_none(api: Api) -> None:
    client, job = api.client("read"), api.submitted()
    store = api.context.store
    Path(store.get(job).folder or "").mkdir(parents=True)
    assert readable_checkpoints(api.context, store.get(job)) == ([], "")
    assert client.get(f"/v1/jobs/{job}/checkpoints").json() == []
    spec = {**SPEC, "train": {"max_steps": 10, "checkpoint_storage": "s3://elsewhere/x"}}
    (Path(store.get(job).folder or "") / "spec.yaml").write_text(json.dumps(spec))
    found, reason = readable_checkpoints(api.context, store.get(job))
    assert found == []
    assert "--checkpoint-url" in reason
    assert problem(client.get(f"/v1/jobs/{job}/checkpoints")) == reason
    assert dict(JobLive(api.context, job).poll())["checkpoints"] == {"shown": [], "problem": reason}


def test_states_determine_what_can_be_done(api: Api) -> None:
    client, job = api.client(), api.submitted()
    assert "only a job that has ended" in problem(client.post(f"/v1/jobs/{job}/resume"))
    assert "stop it first" in problem(client.delete(f"/v1/jobs/{job}"))
    assert client.post(f"/v1/jobs/{job}/stop").json()["status"] == "stopped", "it had not begun"
    assert client.post(f"/v1/jobs/{job}/stop").status_code == 202, "to stop it again changes nothing"
    assert client.post(f"/v1/jobs/{job}/resume").json()["status"] == "queued"
    texts = [event["text"].partition(":")[0] for event in client.get(f"/v1/jobs/{job}/events").json()]
    assert texts == ["queued", "stopped", "queued"]
    assert client.get("/v1/jobs/no-such-job").status_code == 404
    counts = client.get("/metrics").text
    assert 'gradguard_service_jobs{status="queued"} 1.0' in counts
    assert all(f'status="{status}"' in counts for status in STATUSES)


def test_logs_come_by_range_and_streams_end_with_the_job(api: Api) -> None:
    client, job = api.client("read"), api.submitted()
    path = log_path(api.context.root, job)
    path.parent.mkdir(parents=True)
    path.write_text("0123456789")
    assert client.get(f"/v1/jobs/{job}/logs").text == "0123456789"
    assert client.get(f"/v1/jobs/{job}/logs", params={"offset": 3, "limit": 4}).text == "3456"
    assert client.get(f"/v1/jobs/{job}/logs", params={"tail": 2}).text == "89"
    api.client().post(f"/v1/jobs/{job}/stop")
    assert client.get(f"/v1/jobs/{job}/logs", params={"follow": True, "offset": 8}).text == "89"
    stream = client.get(f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert [line for line in stream.text.splitlines() if line.startswith("id:")] == ["id: 1", "id: 2"]
    later = client.get(f"/v1/jobs/{job}/events", params={"follow": True}, headers={"Last-Event-ID": "1"})
    assert "id: 1" not in later.text


def test_no_link_leads_out_of_the_storage_folder(api: Api, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"type": "incident", "id": 1, "reason": "private"}\n')
    client, job = api.client("read"), api.submitted()
    folder = Path(api.context.store.get(job).folder or "")
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text("{}")
    (folder / "incidents.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert "leads out of the job's folder" in problem(client.get(f"/v1/jobs/{job}/incidents"))
    assert client.get(f"/v1/jobs/{job}/report").status_code == 409


def archive(name: str, *, mode: int = stat.S_IFREG | 0o644, size: int = 1) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.compress_type = zipfile.ZIP_DEFLATED
        file.writestr(info, b"0" * size)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (archive("../escape.py"), 422, "must stay inside"),
        (archive("/etc/passwd"), 422, "must stay inside"),
        (archive("a\\..\\b"), 422, "must stay inside"),
        (archive("link", mode=stat.S_IFLNK | 0o777), 422, "not a plain file"),
        (archive("bomb", size=2 << 20), 413, "too large when unpacked"),
        (archive("x")[:-8], 422, "not a readable zip file"),
        (b"0" * (3 << 20), 413, "larger than"),
    ],
)
def test_a_working_directory_cannot_reach_beyond_its_folder(
    tmp_path: Path, content: bytes, status: int, says: str
) -> None:
    api = Api(tmp_path, limits=Limits(upload_bytes=1 << 20, unpacked_bytes=1 << 20))
    answer = api.client("submit").post("/v1/packages", content=content)
    assert answer.status_code == status
    assert says in problem(answer)
    assert api.client("submit").post("/v1/packages", content=archive("my_job.py")).json()["files"] == 1


def test_requests_have_a_size_and_a_rate(tmp_path: Path) -> None:
    api = Api(tmp_path, limits=Limits(body_bytes=1000, requests_per_s=0.001, burst=3))
    client = api.client("submit")
    assert "larger than" in problem(client.post("/v1/jobs", content=b" " * 2000))
    chunked = client.post("/v1/jobs", content=iter([b" " * 600, b" " * 600]))
    assert chunked.status_code == 413
    client.get("/v1/jobs")
    refused = client.get("/v1/jobs")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert client.get("/healthz").status_code == 200


def test_a_bucket_fills_up_again() -> None:
    now = 0.0
    buckets = Buckets(2.0, 2, clock=lambda: now)
    assert [buckets.take("me") for _ in range(3)] == [True, True, False]
    assert buckets.take("you")
    now = 0.5
    assert [buckets.take("me") for _ in range(2)] == [True, False]


def test_a_page_in_a_browser_can_neither_change_anything_nor_borrow_a_name(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from service.app import make_app

    api = Api(tmp_path, auth=False)
    client = TestClient(make_app(api.context, loopback=True), base_url="http://127.0.0.1:8410")
    assert client.get("/v1/jobs").status_code == 200
    for name in ("evil.example:8410", "evil.example", "10.0.0.1:8410", "127.0.0.1.evil.example", "", "[::2]"):
        assert "loopback name" in problem(client.get("/v1/jobs", headers={"Host": name}))
    for name in ("localhost:8410", "LOCALHOST", "127.0.0.2:8410", "127.1.2.3", "[::1]:8410", "[::1]"):
        assert client.get("/v1/jobs", headers={"Host": name}).status_code == 200
    foreign = client.post("/v1/jobs", json={"spec": SPEC}, headers={"Origin": "https://evil.example"})
    assert "another origin" in problem(foreign)
    assert client.post("/v1/jobs", json={"spec": SPEC}).status_code == 201
