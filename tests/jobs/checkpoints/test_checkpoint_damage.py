"""Whatever happens to the bytes of a checkpoint is noticed, named, and the good one before it is used."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.checkpoints import CheckpointManager, DamagedCheckpoint
from jobs.checkpoints.load import verify
from jobs.checkpoints.manifest import Manifest, digest_of, parse
from jobs.run_dir.storage import MANIFEST, LocalStorage
from tests.jobs.checkpoints.checkpoint_fixture import Messages, names, parts, proven, train

FLIPS_PER_FILE = 60


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    state = parts()
    train(state, 2)
    proven(CheckpointManager(folder, state, spec={"name": "x"}), 10, 20)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_any_flipped_byte_of_any_file_is_found(folder: Path) -> None:
    storage, dice = LocalStorage(folder), random.Random(0)
    verify(storage, "step-00000020")
    for path in sorted((folder / "step-00000020").iterdir()):
        whole = path.read_bytes()
        for _ in range(FLIPS_PER_FILE):
            place, change = dice.randrange(len(whole)), dice.randrange(1, 256)
            path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            with pytest.raises(DamagedCheckpoint, match=path.name):
                verify(storage, "step-00000020")
        path.write_bytes(whole)
    verify(storage, "step-00000020")


def shortened(checkpoint: Path) -> str:
    path = next(checkpoint.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    return "bytes instead of"


def missing(checkpoint: Path) -> str:
    next(checkpoint.glob("*.safetensors")).unlink()
    return "is missing"


def flipped(checkpoint: Path) -> str:
    content = bytearray((checkpoint / "state.json").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "state.json").write_bytes(content)
    return "state.json does not match its checksum"


def cut_manifest(checkpoint: Path) -> str:
    path = checkpoint / MANIFEST
    path.write_bytes(path.read_bytes()[:100])
    return "manifest.json cannot be read"


def other_world_size(checkpoint: Path) -> str:
    rewrite(checkpoint, world_size=2)
    return "has 2 ranks, state.json has 1"


def foreign_format(checkpoint: Path) -> str:
    rewrite(checkpoint, format=7)
    return "has format 7; this version reads 1"


def renamed(checkpoint: Path) -> str:
    rewrite(checkpoint, step=19)
    return "is that of step 19"


def planted(checkpoint: Path) -> str:
    shutil.copy(next(checkpoint.glob("*.safetensors")), checkpoint / "shard-00009-more.safetensors")
    return "shard-00009-more.safetensors does not belong to it"


def rewrite(checkpoint: Path, **changes: Any) -> None:
    manifest = parse((checkpoint / MANIFEST).read_bytes())
    (checkpoint / MANIFEST).write_bytes(manifest.model_copy(update=changes).render())


@pytest.mark.parametrize(
    "harm",
    [shortened, missing, flipped, cut_manifest, other_world_size, foreign_format, renamed, planted],
    ids=lambda harm: harm.__name__,
)
def test_a_damaged_one_is_named_and_the_one_before_it_used(folder: Path, harm: Callable[[Path], str]) -> None:
    what = harm(folder / "step-00000020")
    messages = Messages()
    assert CheckpointManager(folder, parts(), notify=messages).load_latest() == 10
    assert len(messages) == 1
    assert messages[0].startswith("warning: checkpoint step-00000020 is damaged: ")
    assert what in messages[0]
    again = Messages()
    assert CheckpointManager(folder, parts(), notify=again).load_latest() == 10
    assert again == [], "it has been set aside"
    assert "step-00000020" in names(folder), "and stays for inspection"


def test_what_file_browsers_and_kills_leave_in_it_does_no_harm(folder: Path) -> None:
    newest = folder / "step-00000020"
    shard = next(newest.glob("*.safetensors"))
    strays = (".DS_Store", f"._{shard.name}", f".{MANIFEST}.tmp", ".nfs000000000004a1c3", "Thumbs.db")
    for stray in strays:
        (newest / stray).write_bytes(b"\0\5\x16\7")
    (newest / "@eaDir").mkdir()
    messages, state = Messages(), parts()
    assert CheckpointManager(folder, state, notify=messages).load_latest() == 20
    assert messages == []
    assert {*strays, "@eaDir"} <= {path.name for path in newest.iterdir()}, "nothing of others is deleted"


def test_nothing_is_loaded_of_a_damaged_one(folder: Path) -> None:
    state = parts()
    before = {k: v.clone() for k, v in state["model"].state_dict().items()}
    for checkpoint in folder.iterdir():
        flipped(checkpoint)
    with pytest.raises(Exception, match="no checkpoint"):
        CheckpointManager(folder, state).load_latest()
    assert all(torch.equal(before[k], v) for k, v in state["model"].state_dict().items())


def test_no_pickle_is_executed_even_if_its_checksum_is_right(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    checkpoint = folder / "step-00000020"
    trap = pickle.dumps(Trap())
    manifest = parse((checkpoint / MANIFEST).read_bytes())
    files = dict(manifest.files)
    for name in [*files, ".metadata", "state.pt"]:
        (checkpoint / name).write_bytes(trap)
        files[name] = digest_of(io.BytesIO(trap))
    forged: Manifest = manifest.model_copy(update={"files": files})
    (checkpoint / MANIFEST).write_bytes(forged.render())
    messages = Messages()
    assert CheckpointManager(folder, parts(), notify=messages).load_latest() == 10
    assert "step-00000020 is damaged" in messages[0]
    assert not (tmp_path / "executed").exists()


def test_a_foreign_manifest_is_refused_in_one_line() -> None:
    for content in (b"", b"[]", b"null", b'{"checksum": 1}', b"\xff\xfe", json.dumps({"step": 1}).encode()):
        with pytest.raises(DamagedCheckpoint) as refused:
            parse(content)
        assert "\n" not in str(refused.value)
