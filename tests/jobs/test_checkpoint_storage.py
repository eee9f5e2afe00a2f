"""The same promises on every kind of storage: a folder, fsspec's file systems, an S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.checkpoints import Checkpoints, DamagedCheckpoint, checkpoint_name, newest_step
from jobs.checkpoints.load import verify
from jobs.checkpoints.manifest import MANIFEST
from jobs.checkpoints.storage import Storage, open_storage
from jobs.errors import JobError
from tests.jobs.checkpoint_fixture import Told, parts, proven, train

BUCKET = "checkpoints"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=BUCKET)
    client.close()
    yield f"{host}%3A{port}"
    server.stop()


@pytest.fixture(params=["path", "file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3")
        options = f"region=us-east-1&scheme=http&endpoint_override={endpoint}&allow_bucket_creation=true"
        return f"s3://test:test@{BUCKET}/{uuid.uuid4().hex}/run?{options}"
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/run"
    return str(tmp_path / "run") if request.param == "path" else f"file://{tmp_path}/run"


def damage(storage: Storage, name: str, tmp_path: Path) -> None:
    """A byte of state.json is flipped, whatever the storage."""
    content = bytearray(storage.read(name, "state.json"))
    content[len(content) // 2] ^= 1
    folder = tmp_path / "damage"
    folder.mkdir()
    (folder / "state.json").write_bytes(content)
    local = storage.local_copy(name, tmp_path / "copy")
    if storage.private:
        storage.put(name, folder / "state.json")
    else:
        (local / "state.json").write_bytes(content)


def test_a_run_continues_from_anywhere_and_never_from_what_is_damaged(place: str, tmp_path: Path) -> None:
    state = parts()
    checkpoints = Checkpoints(place, state)
    assert checkpoints.load_latest() is None
    assert newest_step(place) is None
    for step in (10, 20, 30):
        train(state, 1)
        proven(checkpoints, step)
    assert newest_step(place) == 30
    expected = train(state, 3)
    again = parts()
    assert Checkpoints(place, again).load_latest() == 30
    assert train(again, 3) == expected

    storage = open_storage(place)
    verify(storage, "step-00000030")
    damage(storage, "step-00000030", tmp_path)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json does not match its checksum"):
        verify(storage, "step-00000030")
    told = Told()
    assert Checkpoints(place, parts(), notify=told).load_latest() == 20
    assert len(told) == 1
    assert storage.names() == ["step-00000010", "step-00000020"]
    proven(checkpoints, 31, 30)
    verify(storage, "step-00000030")


def test_candidates_suspects_and_retention_are_the_same_everywhere(place: str) -> None:
    state = parts()
    checkpoints = Checkpoints(place, state)
    proven(checkpoints, 10, 20, 30, 40)
    checkpoints.save(50)
    checkpoints.doubt()
    checkpoints.finish()
    storage = open_storage(place)
    assert storage.names() == ["step-00000020", "step-00000030", "step-00000040"]
    with torch.no_grad():
        state["model"][0].bias.fill_(3.0)
    checkpoints.forget_after(30)
    checkpoints.save(30, closing=True)
    assert checkpoints.latest() == checkpoint_name(place, 30)
    fresh = parts()
    assert Checkpoints(place, fresh).load_latest() == 30
    assert torch.equal(fresh["model"][0].bias, torch.full((8,), 3.0))


def test_what_has_no_manifest_is_no_checkpoint_and_is_swept_away(place: str, tmp_path: Path) -> None:
    proven(Checkpoints(place, parts()), 10)
    storage = open_storage(place)
    half = storage.workspace("step-00000020.1") / "shard-00001.safetensors"
    half.write_bytes(b"half")
    storage.put("step-00000020", half)
    assert storage.names() == ["step-00000010"]
    assert Checkpoints(place, parts()).load_latest() == 10
    assert storage.names() == ["step-00000010"]
    if storage.private:
        assert storage.files("step-00000020") == {}
        storage.discard("step-00000020.1")


def test_a_manifest_is_replaced_whole(place: str) -> None:
    proven(Checkpoints(place, parts()), 10)
    storage = open_storage(place)
    storage.replace_manifest("step-00000010", b"short")
    assert storage.read("step-00000010", MANIFEST) == b"short"
    assert set(storage.files("step-00000010")) == {
        "shard-00001-model-00001-of-00001.safetensors",
        "state.json",
    }


def test_a_url_that_nobody_knows_is_one_clear_line() -> None:
    with pytest.raises(JobError, match="nosuch://somewhere/run is no place"):
        open_storage("nosuch://somewhere/run")
