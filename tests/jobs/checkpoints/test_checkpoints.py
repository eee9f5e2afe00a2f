"""Checkpoints of one rank: the run continues identically, and only good ones count."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from guard import GuardMetrics
from jobs.checkpoints import CheckpointManager, Policy, newest_step
from jobs.errors import JobError
from jobs.spec.errors import SpecError
from tests.jobs.checkpoints.checkpoint_fixture import Messages, names, parts, proven, train


def test_a_loaded_run_continues_bit_identically(tmp_path: Path) -> None:
    whole = parts()
    train(whole, 5)
    kept = CheckpointManager(tmp_path, whole)
    kept.save(5)
    expected = train(whole, 5)
    kept.clean_step()
    kept.clean_step()
    kept.finish()

    resumed = parts()
    random.seed(99)
    assert CheckpointManager(tmp_path, resumed).load_latest() == 5
    assert train(resumed, 5) == expected
    for name, tensor in whole["model"].state_dict().items():
        assert torch.equal(tensor, resumed["model"].state_dict()[name])


def test_without_a_checkpoint_nothing_is_loaded(tmp_path: Path) -> None:
    fresh = parts()
    before = {k: v.clone() for k, v in fresh["model"].state_dict().items()}
    assert CheckpointManager(tmp_path, fresh).load_latest() is None
    assert all(torch.equal(before[k], v) for k, v in fresh["model"].state_dict().items())


def test_the_state_saved_is_that_of_the_moment_while_training_continues(tmp_path: Path) -> None:
    state = parts()
    train(state, 1)
    then = state["model"].state_dict()["0.weight"].clone()
    checkpoints = CheckpointManager(tmp_path, state)
    checkpoints.save(1)
    train(state, 3)
    checkpoints.clean_step()
    checkpoints.clean_step()
    fresh = parts()
    checkpoints.finish()
    CheckpointManager(tmp_path, fresh).load_latest()
    assert torch.equal(fresh["model"].state_dict()["0.weight"], then)


def test_only_what_clean_steps_followed_is_resumed_from(tmp_path: Path) -> None:
    state = parts()
    checkpoints = CheckpointManager(tmp_path, state)
    proven(checkpoints, 10)
    checkpoints.save(20)
    checkpoints.clean_step()
    checkpoints.finish()
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    assert newest_step(tmp_path) == 10
    assert CheckpointManager(tmp_path, parts()).load_latest() == 10
    assert names(tmp_path) == ["step-00000010"], "the candidate can no longer be confirmed"


def test_a_step_that_is_not_clean_deletes_the_candidate_and_not_the_good_one(tmp_path: Path) -> None:
    metrics = GuardMetrics()
    checkpoints = CheckpointManager(tmp_path, parts(), metrics=metrics)
    proven(checkpoints, 10)
    checkpoints.save(20)
    checkpoints.clean_step()
    checkpoints.mark_suspect()
    checkpoints.clean_step()
    checkpoints.finish()
    assert names(tmp_path) == ["step-00000010"]
    counted = metrics.snapshot()["totals"]["checkpoints"]
    assert (counted["written"], counted["good"], counted["suspect"]) == (2, 1, 1)


def test_what_a_rollback_undid_is_forgotten_and_written_again(tmp_path: Path) -> None:
    state = parts()
    checkpoints = CheckpointManager(tmp_path, state)
    proven(checkpoints, 10, 20)
    checkpoints.discard_after(10)
    checkpoints.finish()
    assert newest_step(tmp_path) == 10
    with torch.no_grad():
        state["model"][0].bias.fill_(7.0)
    proven(checkpoints, 10)
    fresh = parts()
    CheckpointManager(tmp_path, fresh).load_latest()
    assert torch.equal(fresh["model"][0].bias, torch.full((8,), 7.0))


def test_the_last_state_of_an_orderly_end_is_good(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(tmp_path, parts())
    checkpoints.save(7)
    checkpoints.save(7, closing=True)
    assert checkpoints.latest() == f"{tmp_path.name}/step-00000007"


def test_an_end_right_after_a_bad_step_is_not_resumed_from(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(tmp_path, parts())
    proven(checkpoints, 5)
    checkpoints.mark_suspect()
    checkpoints.save(7, closing=True)
    assert checkpoints.latest() == f"{tmp_path.name}/step-00000005"


def test_the_newest_few_and_the_best_are_kept(tmp_path: Path) -> None:
    accuracy = iter([0.5, 0.9, 0.6, 0.7, 0.8])
    checkpoints = CheckpointManager(
        tmp_path,
        parts(),
        policy=Policy(keep=2, best="max:accuracy"),
        describe=lambda: (0, {"accuracy": next(accuracy)}),
    )
    proven(checkpoints, 10, 20, 30, 40, 50)
    assert names(tmp_path) == ["step-00000020", "step-00000040", "step-00000050"]


def test_a_rollback_from_disk_keeps_counters_and_data_position(tmp_path: Path) -> None:
    class Counter:
        value = 1

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.value = state["value"]

    state = {**parts(), "cursor": Counter(), "guard": Counter()}
    checkpoints = CheckpointManager(tmp_path, state)
    train(state, 2)
    proven(checkpoints, 10, 20)
    good = state["model"].state_dict()["0.weight"].clone()
    state["guard"].value = 5
    with torch.no_grad():
        state["model"][0].weight.fill_(float("nan"))
    checkpoints.save(30)
    loaded = checkpoints.load_good(15)
    assert loaded is not None
    assert (loaded.step, state["guard"].value, loaded.kept["guard"]) == (10, 5, {"value": 1})
    assert torch.equal(state["model"].state_dict()["0.weight"], good)
    checkpoints.finish()
    assert names(tmp_path) == ["step-00000010"], "what came after it is rolled back"
    assert checkpoints.restore() == 10


def test_a_failed_write_is_reported_counted_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("in the way")
    messages, metrics = Messages(), GuardMetrics()
    checkpoints = CheckpointManager(folder, parts(), notify=messages, metrics=metrics)
    proven(checkpoints, 1)
    assert messages == ["warning: no checkpoint of step 1: Not a directory; training continues"]
    assert metrics.snapshot()["totals"]["checkpoint_failures"] == 1
    folder.unlink()
    proven(checkpoints, 2)
    assert checkpoints.latest() == "checkpoints/step-00000002"
    assert len(messages) == 1


def test_a_part_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"inner": [object()]}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    messages = Messages()
    CheckpointManager(tmp_path, {"odd": Odd()}, notify=messages).save(1)
    assert "odd.inner.0 is a object" in messages[0]


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    proven(CheckpointManager(tmp_path, parts()), 10)
    (tmp_path / ".step-00000020.7.tmp").mkdir()
    (tmp_path / ".step-00000020.7.tmp" / "shard-00001.safetensors").write_bytes(b"half")
    (tmp_path / "step-00000030").mkdir()
    (tmp_path / "step-00000010").rename(tmp_path / ".step-00000010.old")  # killed while it was replaced
    assert CheckpointManager(tmp_path, parts()).load_latest() == 10
    assert names(tmp_path) == ["step-00000010"]


def test_another_model_or_batch_is_refused_and_the_fields_are_named(tmp_path: Path) -> None:
    spec = {"model": {"name": "resnet18"}, "data": {"batch_size": 8}, "train": {"epochs": 2}}
    proven(CheckpointManager(tmp_path, parts(), spec=spec), 10)
    other = {"model": {"name": "vgg11"}, "data": {"batch_size": 16}, "train": {"epochs": 4}}
    with pytest.raises(SpecError) as refused:
        CheckpointManager(tmp_path, parts(), spec=other).load_latest()
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("data.batch_size = 16: the checkpoint of step 10 was made with 8")
    assert lines[1].startswith('model.name = "vgg11": the checkpoint of step 10 was made with resnet18')
    assert len(lines) == 2
    longer = {**spec, "train": {"epochs": 9}}
    assert CheckpointManager(tmp_path, parts(), spec=longer).load_latest() == 10


def test_where_no_good_one_can_be_read_the_run_does_not_silently_start_over(tmp_path: Path) -> None:
    proven(CheckpointManager(tmp_path, parts()), 10)
    (tmp_path / "step-00000010" / "state.json").unlink()
    for _ in range(2):
        with pytest.raises(JobError, match=r"step-00000010: state\.json is missing"):
            CheckpointManager(tmp_path, parts()).load_latest()


def test_the_manifest_describes_what_was_saved(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(
        tmp_path, parts(), spec={"name": "x"}, describe=lambda: (12, {"loss": float("nan")})
    )
    checkpoints.save(10, closing=True)
    manifest = json.loads((tmp_path / "step-00000010" / "manifest.json").read_text())
    assert (manifest["step"], manifest["attempt"], manifest["world_size"]) == (10, 12, 1)
    assert manifest["health"] == "good"
    assert manifest["metrics"] == {"loss": "nan"}
    assert manifest["spec"] == {"name": "x"}
    assert set(manifest["files"]) == {"shard-00001-model-00001-of-00001.safetensors", "state.json"}
    assert not list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob(".metadata")), "there is no pickle"
