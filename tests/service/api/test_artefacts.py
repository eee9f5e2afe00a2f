"""What a job recorded and its checkpoints, over HTTP: to the byte, and to those who may have them."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from service.page.streams import JobLive
from tests.service.api.api_fixture import Api, problem


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


@pytest.fixture
def job(api: Api) -> str:
    job_id = api.submitted()
    folder = Path(api.context.store.get(job_id).folder or "")
    checkpoint = folder / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n' * 200_000)  # more than one piece
    (folder / "spec.yaml").write_text("options: {api_key: hunter2hunter2}\n")
    (checkpoint / "manifest.json").write_bytes(b"{}")
    (checkpoint / "shard-00000.safetensors").write_bytes(os.urandom(3_000_001))
    (checkpoint / "empty.json").write_bytes(b"")
    return job_id


def folder_of(api: Api, job: str) -> Path:
    return Path(api.context.store.get(job).folder or "")


def test_a_recorded_file_arrives_to_the_byte(api: Api, job: str) -> None:
    answer = api.client("read").get(f"/v1/jobs/{job}/files/metrics.jsonl")
    assert answer.status_code == 200
    assert answer.content == (folder_of(api, job) / "metrics.jsonl").read_bytes()
    assert "has no incidents.jsonl yet" in problem(
        api.client("read").get(f"/v1/jobs/{job}/files/incidents.jsonl")
    )


def test_a_result_arrives_without_the_secrets_that_it_quotes(api: Api) -> None:
    spec = {"name": "own", "workload": "my:Own", "options": {"db": "postgres://me:hunter2hunter2@host"}}
    job = api.submitted(spec=spec, env={"API_KEY": "another1"})
    folder = folder_of(api, job)
    folder.mkdir(parents=True)
    result = {"status": "failed", "steps": 7, "error": "hunter2hunter2", "resume": "train --set x=another1"}
    (folder / "result.json").write_text(json.dumps(result))
    shown = {**result, "error": "*" * 14, "resume": "train --set x=********"}
    assert api.client("read").get(f"/v1/jobs/{job}/files/result.json").json() == shown
    report = api.client("read").get(f"/v1/jobs/{job}/report").text
    assert not [text for text in ("hunter2", "another1") if text in report]


def test_a_secret_that_a_job_writes_into_its_files_is_in_no_answer(api: Api) -> None:
    secret = "o<p&q>r-77889900"
    spec = {"name": "own", "workload": "my:Own", "options": {"api_key": secret, "password": 1234567}}
    job = api.submitted(spec=spec)
    folder = folder_of(api, job)
    folder.mkdir(parents=True)
    incident = {
        **{"type": "incident", "id": 1, "attempt": 3, "step": 3, "verdict": "spike", "signal": "loss"},
        **{"action": "skipped", "score": 9.0, "baseline": 1.0, "value": 1234567, "samples": [secret]},
    }
    (folder / "incidents.jsonl").write_text(json.dumps(incident) + "\n")
    (folder / "metrics.jsonl").write_text('{"attempt": 1, "step": 1, "action": "applied", "loss": 1.0}\n')
    (folder / "checkpoints.jsonl").write_text(json.dumps({"event": "failed", "why": secret}) + "\n")
    (folder / "samples.txt").write_text(f"the key is {secret}\n")
    (folder / "result.json").write_text('{"status": "failed", "samples": "samples.txt"}')
    reader = api.client("read")
    files = [f"files/{name}" for name in ("incidents.jsonl", "checkpoints.jsonl", "samples.txt")]
    for what in (*files, "incidents", "report"):
        answer = reader.get(f"/v1/jobs/{job}/{what}")
        assert answer.status_code == 200
        assert "77889900" not in answer.text, what
    assert reader.get(f"/v1/jobs/{job}/files/incidents.jsonl").json()["value"] == 1234567, "a figure is none"
    assert JobLive(api.context, job).poll()
    assert "77889900" not in json.dumps(JobLive(api.context, job).poll())


def test_a_hard_link_to_another_file_is_not_sent(api: Api, job: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("TOPSECRET")
    (folder_of(api, job) / "samples.txt").hardlink_to(tmp_path / "outside")
    answer = api.client("read").get(f"/v1/jobs/{job}/files/samples.txt")
    assert answer.status_code == 409
    assert "samples.txt has another name too" in problem(answer)


@pytest.mark.parametrize("name", ["spec.yaml", "train.log", "..%2F..%2Fservice.db", "checkpoints"])
def test_no_other_file_can_be_named(api: Api, job: str, name: str) -> None:
    answer = api.client("admin").get(f"/v1/jobs/{job}/files/{name}")
    assert answer.status_code in (404, 422)
    assert "hunter2" not in answer.text


def test_a_checkpoint_arrives_as_a_tar_file_that_holds_its_files(api: Api, job: str) -> None:
    answer = api.client("submit").get(f"/v1/jobs/{job}/checkpoints/10")
    assert answer.status_code == 200, answer.text
    folder = folder_of(api, job) / "checkpoints" / "step-00000010"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert found == {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_contains_secrets_and_a_reader_does_not_get_it(api: Api, job: str) -> None:
    assert api.client("read").get(f"/v1/jobs/{job}/checkpoints/10").status_code == 403


def test_a_checkpoint_that_is_missing_or_leads_elsewhere_is_refused(
    api: Api, job: str, tmp_path: Path
) -> None:
    client = api.client("submit")
    assert "no checkpoint of step 20" in problem(client.get(f"/v1/jobs/{job}/checkpoints/20"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_text("TOPSECRET")
    (folder_of(api, job) / "checkpoints" / "step-00000020").symlink_to(outside)
    answer = client.get(f"/v1/jobs/{job}/checkpoints/20")
    assert answer.status_code == 409
    assert "leads out of the job's folder" in problem(answer)


def test_a_checkpoint_with_a_file_that_leads_elsewhere_is_refused(api: Api, job: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("TOPSECRET")
    folder = folder_of(api, job) / "checkpoints" / "step-00000010"
    (folder / "z.json").symlink_to(tmp_path / "outside")
    answer = api.client("submit").get(f"/v1/jobs/{job}/checkpoints/10")
    assert answer.status_code == 409
    assert "z.json leads out of the job's folder" in problem(answer)
