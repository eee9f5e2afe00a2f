"""The same promises on every kind of storage: a folder, fsspec's file systems, an S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.checkpoints import CheckpointManager, DamagedCheckpoint, checkpoint_name, newest_step
from jobs.checkpoints.load import verify
from jobs.errors import JobError
from jobs.run_dir.open_storage import open_storage
from jobs.run_dir.storage import MANIFEST, Storage, shown, without_keys
from tests.jobs.checkpoints.checkpoint_fixture import Messages, parts, proven, train
from tests.jobs.checkpoints.s3_fixture import BUCKET, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as options:
        yield options


@pytest.fixture(params=["path", "file", "local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """``file`` is our own way to the local disk, ``local`` that of fsspec."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        return f"s3://test:test@{BUCKET}/{name}/run?{request.getfixturevalue('s3')}"
    urls = {
        "file": f"file://{tmp_path}/run",
        "local": f"local://{tmp_path}/run",
        "memory": f"memory://{name}/run",
    }
    return urls.get(request.param, str(tmp_path / "run"))


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
    checkpoints = CheckpointManager(place, state)
    assert checkpoints.load_latest() is None
    assert newest_step(place) is None
    for step in (10, 20, 30):
        train(state, 1)
        proven(checkpoints, step)
    assert newest_step(place) == 30
    expected = train(state, 3)
    again = parts()
    assert CheckpointManager(place, again).load_latest() == 30
    assert train(again, 3) == expected

    storage = open_storage(place)
    verify(storage, "step-00000030")
    damage(storage, "step-00000030", tmp_path)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json does not match its checksum"):
        verify(storage, "step-00000030")
    messages = Messages()
    assert CheckpointManager(place, parts(), notify=messages).load_latest() == 20
    assert len(messages) == 1
    assert storage.names() == ["step-00000010", "step-00000020"]
    proven(checkpoints, 31, 30)
    verify(storage, "step-00000030")


def test_candidates_suspects_and_retention_are_the_same_everywhere(place: str) -> None:
    state = parts()
    checkpoints = CheckpointManager(place, state)
    proven(checkpoints, 10, 20, 30, 40)
    checkpoints.save(50)
    checkpoints.mark_suspect()
    checkpoints.finish()
    storage = open_storage(place)
    assert storage.names() == ["step-00000020", "step-00000030", "step-00000040"]
    with torch.no_grad():
        state["model"][0].bias.fill_(3.0)
    checkpoints.discard_after(30)
    checkpoints.save(30, closing=True)
    assert checkpoints.latest() == checkpoint_name(place, 30)
    fresh = parts()
    assert CheckpointManager(place, fresh).load_latest() == 30
    assert torch.equal(fresh["model"][0].bias, torch.full((8,), 3.0))


def test_what_has_no_manifest_is_no_checkpoint_and_is_swept_away(place: str, tmp_path: Path) -> None:
    proven(CheckpointManager(place, parts()), 10)
    storage = open_storage(place)
    half = storage.workspace("step-00000020.1") / "shard-00001.safetensors"
    half.write_bytes(b"half")
    storage.put("step-00000020", half)
    assert storage.names() == ["step-00000010"]
    assert CheckpointManager(place, parts()).load_latest() == 10
    assert storage.names() == ["step-00000010"]
    if storage.private:
        assert storage.files("step-00000020") == {}
        storage.discard("step-00000020.1")


def test_a_manifest_is_replaced_whole(place: str) -> None:
    proven(CheckpointManager(place, parts()), 10)
    storage = open_storage(place)
    storage.replace_manifest("step-00000010", b"short")
    assert storage.read("step-00000010", MANIFEST) == b"short"
    assert set(storage.files("step-00000010")) == {
        "shard-00001-model-00001-of-00001.safetensors",
        "state.json",
    }


def test_a_url_with_an_unknown_scheme_is_one_clear_line() -> None:
    with pytest.raises(JobError, match="cannot store checkpoints at nosuch://somewhere/run: "):
        open_storage("nosuch://somewhere/run")


def test_a_storage_is_shown_without_its_credentials() -> None:
    url = "s3://key:secret@bucket/runs/x?region=eu-west-1&endpoint_override=http%3A%2F%2Fhost"
    assert shown(url) == "s3://bucket/runs/x"
    assert shown("memory://a/b@c") == "memory://a/b@c"
    assert shown("runs/x?") == "runs/x?"
    assert checkpoint_name(url, 7) == "s3://bucket/runs/x/step-00000007"
    assert without_keys(f"a: '{url}'\nb: http://host/x\n") == "a: 's3://bucket/runs/x'\nb: http://host/x\n"
    assert checkpoint_name(Path("runs/x/checkpoints"), 7) == "checkpoints/step-00000007"
