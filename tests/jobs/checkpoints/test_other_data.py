"""A checkpoint is continued from with its own data and its own model only; what differs is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jobs.checkpoints import CheckpointManager, DamagedCheckpoint
from jobs.checkpoints.data_match import other_data
from jobs.checkpoints.export import ABOUT, export_model
from jobs.checkpoints.load import read, verify
from jobs.errors import JobError
from jobs.init.weights import load_weights
from jobs.models.exported import load_model
from jobs.run_dir.open_storage import open_storage
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload
from tests.jobs.checkpoints.checkpoint_fixture import Messages, parts, proven, train

CATS = {"samples": 16, "classes": ["cat", "dog"], "fingerprint": "16 images, 0011"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved = parts()
    train(saved, 1)
    proven(CheckpointManager(tmp_path, saved, data=CATS), 4)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"classes": ["dog", "kitten"]}, "the class cat is gone, kitten is new, dog would be another output"),
        ({"classes": ["dog", "cat"]}, "the classes are in another order: cat, dog then, dog, cat now"),
        ({"classes": ["cat", "dog", "eel"]}, "eel is new"),
        ({"samples": 17}, "16 samples then, 17 now"),
        ({"fingerprint": "16 images, 0012"}, "16 images, 0011 then, 16 images, 0012 now"),
    ],
)
def test_other_data_are_refused_by_what_differs_unless_the_user_insists(
    folder: Path, changed: dict[str, Any], says: str
) -> None:
    now = {**CATS, **changed}
    with pytest.raises(JobError, match=f"changed since the checkpoint of step 4: {says}.*on_changed"):
        CheckpointManager(folder, parts(), data=now).load_latest()
    messages = Messages()
    insisted = CheckpointManager(folder, parts(), data=now, accept_other_data=True, notify=messages)
    assert insisted.load_latest() == 4
    assert messages == [f"warning: {other_data(CATS, now, 4)}"]


def test_the_same_data_and_those_of_which_nothing_is_known_are_continued_with(folder: Path) -> None:
    for known in (CATS, {}, {"samples": 16}, {**CATS, "model": {"classes": 2}}):
        assert CheckpointManager(folder, parts(), data=known).load_latest() == 4


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)),
         r"3.weight was \[2, 8\] and is \[3, 8\]"),
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), "3.weight, 3.bias is not in the model"),
        (nn.Sequential(*parts()["model"], nn.Linear(2, 2)), "4.weight, 4.bias is not in the checkpoint"),
    ],
)  # fmt: skip
def test_a_model_that_changed_is_named_and_no_weight_is_used(
    folder: Path, model: nn.Module, says: str
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    changed = {**parts(), "model": model, "optimizer": optimizer}
    with pytest.raises(JobError, match=f"the model changed since the checkpoint of step 4: {says}") as caught:
        CheckpointManager(folder, changed).load_latest()
    assert "--resume" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_part_that_is_gone_from_the_state_is_named(folder: Path) -> None:
    from jobs.checkpoints.manifest import digest_of, parse

    place = folder / "step-00000004"
    state = json.loads((place / "state.json").read_bytes())
    del state["parts"]["schedule"]
    (place / "state.json").write_text(json.dumps(state))
    manifest = parse((place / "manifest.json").read_bytes())
    with (place / "state.json").open("rb") as file:
        record = digest_of(file)
    files = {**manifest.files, "state.json": record}
    (place / "manifest.json").write_bytes(manifest.model_copy(update={"files": files}).render())
    with pytest.raises(DamagedCheckpoint, match=r"state.json has no part schedule"):
        verify(open_storage(folder), "step-00000004")


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"name": "shufflenet_v2_x0_5"}, "data": {"dataset": "digits", "batch_size": 16}},
        {"workload": "language", "data": {"corpus": "python"},
         "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 8, "context": 8}},
    ],
)  # fmt: skip
def test_an_exported_model_is_built_again_from_its_file(spec: dict[str, Any], tmp_path: Path) -> None:
    from jobs.training.data_agreement import identity

    job = JobSpec.from_dict(spec)
    workload = load_workload(job)
    model = workload.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = {"model": model, "optimizer": optimizer}
    manager = CheckpointManager(
        tmp_path / "kept", kept, spec=job.model_dump(mode="json"), data=identity(workload)
    )
    proven(manager, 4)
    file = tmp_path / "model.safetensors"
    export_model(read(open_storage(tmp_path / "kept"), "step-00000004"), file)
    (tmp_path / "job").mkdir()
    (tmp_path / "kept").rename(tmp_path / "job" / "checkpoints")
    for again in (load_model(file), load_model(tmp_path / "job")):
        assert not again.training
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
        assert again.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(JobError, match="no good checkpoint"):
        load_model(tmp_path)


def test_a_model_is_read_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from jobs.training.data_agreement import identity

    job = JobSpec.from_dict({"model": {"name": "shufflenet_v2_x0_5"}, "data": {"dataset": "digits"}})
    workload = load_workload(job)
    model = workload.build_model()
    kept = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    place = tmp_path / "checkpoints"
    manager = CheckpointManager(place, kept, spec=job.model_dump(mode="json"), data=identity(workload))
    proven(manager, 4)
    older = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.fc.bias.add_(1)
    proven(manager, 8, 12)
    (place / "step-00000008" / "manifest.json").write_text("{}")
    largest = max((place / "step-00000012").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    again, other = load_model(tmp_path).state_dict(), workload.build_model()
    load_weights(other, tmp_path)
    for found in (again, other.state_dict()):
        assert all(torch.equal(value, older[name]) for name, value in found.items())
    line = caplog.messages[0]
    assert line.startswith(
        "checkpoints: step-00000004 is used, since a newer one is damaged (step-00000008: "
    )
    assert f"step-00000012: {largest.name} " in line
    (place / "step-00000004" / largest.name).unlink()
    with pytest.raises(JobError, match="every good checkpoint is damaged: step-00000004: "):
        load_model(tmp_path)


def test_a_model_of_the_users_own_code_says_how_to_load_it(folder: Path) -> None:
    export_model(read(open_storage(folder), "step-00000004"), folder / "model.safetensors")
    with pytest.raises(JobError, match=r"build it with its own code.*safetensors.torch.load_file"):
        load_model(folder / "model.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(JobError, match="cannot read"):
        load_model(folder / "broken.safetensors")


@pytest.mark.parametrize(
    "about",
    [
        "5",
        '{"model": 5, "sizes": {"channels": 1}}',
        '{"model": {"name": "no"}, "sizes": {"channels": 1}}',
        '{"model": {"name": "resnet18"}, "sizes": {"channels": "x"}}',
        '{"model": {}, "sizes": 7}',
        '{"workload": "language", "model": {"name": "gpt-tiny"}, "sizes": {}}',
    ],
)
def test_a_file_that_describes_no_model_is_refused_in_one_line(tmp_path: Path, about: str) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={ABOUT: about})
    with pytest.raises(JobError) as refused:
        load_model(tmp_path / "x.safetensors")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("removed", ["folder", "elsewhere"])
def test_a_job_whose_checkpoints_are_gone_does_not_begin_again(tmp_path: Path, removed: str) -> None:
    history, place = tmp_path / "checkpoints.jsonl", tmp_path / "kept"
    proven(CheckpointManager(place, parts(), history=history), 4, 8)
    if removed == "folder":
        shutil.rmtree(place)
    else:
        place = tmp_path / "other"
    with pytest.raises(JobError, match=r"the checkpoint of step 8 is gone from .*--overwrite"):
        CheckpointManager(place, parts(), history=history).load_latest()


def test_checkpoints_that_the_job_itself_removed_are_not_missed(tmp_path: Path) -> None:
    history = tmp_path / "checkpoints.jsonl"
    manager = CheckpointManager(tmp_path / "kept", parts(), history=history)
    proven(manager, 4)
    manager.discard_after(0)
    manager.finish()
    assert CheckpointManager(tmp_path / "kept", parts(), history=history).load_latest() is None


def test_a_part_that_would_begin_again_makes_a_checkpoint_unusable(tmp_path: Path) -> None:
    saved = parts()
    whole = {**saved, "cursor": saved["schedule"]}
    proven(CheckpointManager(tmp_path, whole), 4)
    without = {name: part for name, part in saved.items() if name != "cursor"}
    proven(CheckpointManager(tmp_path, without), 8)
    messages = Messages()
    assert CheckpointManager(tmp_path, whole, notify=messages).load_latest() == 4
    assert messages == [
        "warning: checkpoint step-00000008 is damaged: it has no part cursor; using the one before it"
    ]
