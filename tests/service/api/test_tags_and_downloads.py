"""Jobs are found and stopped by their tags; what they recorded arrives at the client to the byte."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from jobs import JobClient, JobSpec
from jobs.checkpoints import CheckpointManager
from jobs.client import Conflict, JobNotFound, NotAllowed
from jobs.client.models import Submission
from service.cli.app import app
from tests.service.api.api_fixture import SPEC, Api
from tests.service.page.page_fixture import served

STEP = "step-00000010"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(tmp_path_factory.mktemp("tags"))


@pytest.fixture(scope="module")
def url(api: Api) -> Iterator[str]:
    with served(api) as url:
        yield url


def gradguard(api: Api, url: str, *words: str) -> Result:
    environment = {"GRADGUARD_TOKEN": api.tokens["admin"]}
    return CliRunner().invoke(app, [*words, "--address", url], env=environment)


def test_jobs_are_submitted_listed_and_stopped_by_tag(api: Api, url: str, tmp_path: Path) -> None:
    spec = tmp_path / "sweep.yaml"
    spec.write_text(json.dumps({**SPEC, "tags": ["night"]}))
    tags = {"a": ("--tag=lr-0.1", "--tag=night"), "b": ("--tag=lr-0.10",), "c": ()}
    ids = {key: gradguard(api, url, "submit", str(spec), *tags[key]).stdout.strip() for key in tags}
    listed = json.loads(gradguard(api, url, "list", "--tag=lr-0.1", "--json").stdout)
    assert [(job["id"], job["tags"]) for job in listed] == [(ids["a"], ["night", "lr-0.1"])]
    with JobClient(url, token=api.tokens["read"]) as client:
        assert {job.id for job in client.list(tag="night")} == set(ids.values())
        assert client.list(tag="igh") == []
        assert [job.id for job in client.list(tag="night", name=ids["b"])] == [ids["b"]]
        assert client.get(ids["b"]).info.tags == ["night", "lr-0.10"]
    assert gradguard(api, url, "stop", "--tag=lr-0.1").stdout == f"{ids['a']} was asked to stop\n"
    assert {api.context.store.get(job).state for job in (ids["b"], ids["c"])} == {"queued"}
    assert gradguard(api, url, "stop", "--tag=night").stdout.count("was asked to stop") == 2
    assert gradguard(api, url, "stop", "--tag=night").stdout == "", "they have ended"


def test_a_tag_is_a_word_and_anything_else_is_one_line(api: Api, url: str, tmp_path: Path) -> None:
    spec = tmp_path / "digits.yaml"
    spec.write_text(json.dumps(SPEC))
    refused = gradguard(api, url, "submit", str(spec), "--tag=two words")
    assert 'tags[0] = "two words"' in str(refused.exception)
    answer = api.client("read").get("/v1/jobs", params={"tag": "100%"})
    assert answer.status_code == 422
    assert Submission(spec=JobSpec.from_dict(SPEC).model_dump(mode="json")).spec["tags"] == []


@pytest.fixture(scope="module")
def job(api: Api) -> str:
    job_id = api.submitted()
    folder = Path(api.context.store.get(job_id).folder or "")
    (folder / "checkpoints" / STEP).mkdir(parents=True)
    (folder / "spec.yaml").write_text("name: digits\n")
    (folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n' * 200_000)  # more than one piece
    (folder / "checkpoints" / STEP / "manifest.json").write_bytes(b"{}")
    (folder / "checkpoints" / STEP / "shard-00000.safetensors").write_bytes(os.urandom(3_000_001))
    return job_id


@pytest.mark.parametrize("source", ["service", "folder"])
def test_a_client_saves_what_a_job_recorded_and_its_checkpoints(
    api: Api, url: str, job: str, source: str, tmp_path: Path
) -> None:
    folder = Path(api.context.store.get(job).folder or "")
    address = url if source == "service" else str(folder.parent)
    with JobClient(address, token=api.tokens["submit"]) as client:
        saved = client.get(job).download("metrics.jsonl", tmp_path)
        assert saved == tmp_path / f"{job}-metrics.jsonl"
        assert saved.read_bytes() == (folder / "metrics.jsonl").read_bytes()
        checkpoint = client.download_checkpoint(job, 10, tmp_path)
        assert checkpoint == tmp_path / STEP
        original = folder / "checkpoints" / STEP
        assert {p.name: p.read_bytes() for p in checkpoint.iterdir()} == {
            p.name: p.read_bytes() for p in original.iterdir()
        }
        with pytest.raises(JobNotFound, match=r"has no result\.json yet"):
            client.download(job, "result.json", tmp_path)
        with pytest.raises(JobNotFound, match="no checkpoint of step 20"):
            client.download_checkpoint(job, 20, tmp_path)
        with pytest.raises(Conflict, match="exists already"):
            client.download_checkpoint(job, 10, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {saved.name, STEP}, "nothing else stays behind"


def test_a_reader_downloads_no_checkpoint(api: Api, url: str, job: str, tmp_path: Path) -> None:
    with JobClient(url, token=api.tokens["read"]) as client, pytest.raises(NotAllowed, match="scope"):
        client.download_checkpoint(job, 10, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_saves_files_checkpoints_and_weights(
    api: Api, url: str, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(api.context.store.get(job).folder or "")
    trained = checkpoint_of(tmp_path / "trained")
    shutil.copytree(trained, folder / "checkpoints" / trained.name)
    assert gradguard(api, url, "download", job).stdout == f"{job}-metrics.jsonl\n"
    assert gradguard(api, url, "download", job, "--checkpoint=10").stdout == f"{STEP}\n"
    saved = gradguard(api, url, "download", job, "--weights=model.safetensors", "--json")
    assert json.loads(saved.stdout) == ["model.safetensors"]
    assert load_file("model.safetensors").keys() == {"weight", "bias"}
    assert "is none of metrics.jsonl" in str(gradguard(api, url, "download", job, "spec.yaml").exception)
    assert "there is no such folder" in str(gradguard(api, url, "download", job, "--to=no").exception)
    assert "no job" in str(gradguard(api, url, "download", "nobody-1").exception)


def checkpoint_of(folder: Path) -> Path:
    """A good checkpoint of a small model."""
    manager = CheckpointManager(folder, {"model": torch.nn.Linear(2, 2)}, spec={"name": "own"})
    manager.save(20)
    for _ in range(2):
        manager.clean_step()
    manager.finish()
    return folder / "step-00000020"
