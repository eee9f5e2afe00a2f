"""Who did what stays known; a token's quota holds; old jobs go with their files and no other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service.reconcile.log_spool import log_path
from service.reconcile.removal import remove_old
from service.store import JobRow, Tokens
from tests.service.api.api_fixture import SPEC, Api, problem


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def entries(api: Api, **query: object) -> list[tuple[str, str]]:
    rows = api.client("admin").get("/v1/audit", params=query).json()
    return [(row["token"], row["action"]) for row in rows]


def test_the_audit_log_outlives_the_job_and_names_the_token(api: Api) -> None:
    job = api.client("submit").post("/v1/jobs", json={"spec": SPEC}).json()["id"]
    for _ in range(2):  # the second changes nothing
        assert api.client("submit").post(f"/v1/jobs/{job}/stop").status_code == 202
    assert api.client("submit").post(f"/v1/jobs/{job}/resume").status_code == 202
    api.client("admin").post(f"/v1/jobs/{job}/stop")
    assert api.client("submit").delete(f"/v1/jobs/{job}").status_code == 403
    assert api.client("admin").delete(f"/v1/jobs/{job}").status_code == 204
    done = [("submit", "submit"), ("submit", "stop"), ("submit", "resume"), ("admin", "stop")]
    assert entries(api, subject=job) == [*done, ("admin", "delete")]
    api.context.tokens.revoke("read")
    assert entries(api, subject="read") == [
        ("command line", "create token"),
        ("command line", "revoke token"),
    ]
    (first, *_) = api.client("admin").get("/v1/audit", params={"subject": job}).json()
    assert first["address"] == "testclient"
    assert entries(api, subject=job, after=first["seq"], limit=1) == [("submit", "stop")]


def test_only_an_admin_reads_the_audit_log(api: Api) -> None:
    assert api.client("submit").get("/v1/audit").status_code == 403


def test_a_refused_submission_is_not_in_the_audit_log(api: Api) -> None:
    assert api.client("submit").post("/v1/jobs", json={"spec": {"name": "A B"}}).status_code == 422
    assert ("submit", "submit") not in entries(api)


def test_a_quota_of_jobs_counts_those_that_have_not_ended(api: Api) -> None:
    api.tokens["anna"] = api.context.tokens.create("anna", "submit", max_jobs=2)
    client = api.client("anna")
    jobs = [client.post("/v1/jobs", json={"spec": SPEC}) for _ in range(3)]
    assert [answer.status_code for answer in jobs] == [201, 201, 403]
    assert "anna has 2 jobs that have not ended" in problem(jobs[2])
    client.post(f"/v1/jobs/{jobs[0].json()['id']}/stop")
    assert client.post("/v1/jobs", json={"spec": SPEC}).status_code == 201
    assert client.post(f"/v1/jobs/{jobs[0].json()['id']}/resume").status_code == 403
    assert api.client("submit").post("/v1/jobs", json={"spec": SPEC}).status_code == 201


def test_a_quota_of_gpus_counts_what_the_jobs_ask_for(api: Api) -> None:
    api.tokens["anna"] = api.context.tokens.create("anna", "submit", max_gpus=3)
    spec = {**SPEC, "scale": {"workers": 2, "device": "gpu"}}
    answers = [api.client("anna").post("/v1/jobs", json={"spec": spec}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 403]
    assert "its token allows 3" in problem(answers[1])


def ended(api: Api, job_id: str, days_ago: float, folder: Path | None = None) -> Path:
    """A job that ended so long ago, with files and a log."""
    when = time.time() - days_ago * 86_400
    folder = folder or api.root / job_id
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    log = log_path(api.root, job_id)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("done")
    row = JobRow(id=job_id, name=job_id, state="failed", created=when, ended=when, submitted_by="me", env={})
    row.folder = str(folder)
    api.context.store.add(row)
    return folder


def test_retention_deletes_what_ended_long_ago_with_its_files_and_nothing_else(
    api: Api, tmp_path: Path
) -> None:
    old, new = ended(api, "old", 31), ended(api, "new", 29)
    outside = ended(api, "outside", 31, tmp_path / "elsewhere")
    ended(api, "shared", 31, new)
    around = ended(api, "around", 31)
    inner = api.submitted(spec={**SPEC, "storage": str(around.relative_to(api.root) / "checkpoints")})
    running = api.submitted()
    removed = remove_old(api.context.store, None, api.root, 30)
    assert not old.exists()
    assert new.exists(), "another job has the same folder"
    assert outside.exists(), "it is not below the storage folder"
    assert around.exists(), f"{inner} trains inside of it"
    assert {"old", "shared"} <= set(removed)
    left = {job.id for job in api.context.store.page().jobs}
    assert left & {"new", running, "old", "shared"} == {"new", running}
    assert ("retention", "delete") in entries(api, subject="old")
    assert not log_path(api.root, "old").exists()


def test_the_services_own_folder_is_never_deleted(api: Api) -> None:
    own = api.root / ".service"
    own.mkdir()
    ended(api, "bad", 1, own)
    answer = api.client("admin").delete("/v1/jobs/bad?files=true")
    assert answer.status_code == 409
    assert "the service's own" in problem(answer)
    assert own.exists()


def test_tokens_without_a_quota_have_none(api: Api) -> None:
    caller = Tokens(api.engine).check(api.tokens["submit"])
    assert caller is not None
    assert (caller.max_jobs, caller.max_gpus) == (None, None)


def test_a_job_that_was_stopped_while_it_waited_has_an_end(api: Api) -> None:
    job = api.submitted()
    stopped = api.client().post(f"/v1/jobs/{job}/stop").json()
    assert stopped["status"] == "stopped"
    assert stopped["created"] <= stopped["ended"] <= time.time()
    assert api.context.store.ended_before(time.time() + 1) == [job]
