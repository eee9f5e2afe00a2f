"""A checkpoint on request: reported when it is on disk, and only then."""

from __future__ import annotations

from pathlib import Path

from jobs.checkpoints import CheckpointManager
from tests.jobs.checkpoints.checkpoint_fixture import Messages, names, parts, train


def test_a_requested_checkpoint_is_reported_when_it_is_on_disk(tmp_path: Path) -> None:
    state, messages = parts(), Messages()
    checkpoints = CheckpointManager(tmp_path, state, notify=messages)
    train(state, 3)
    assert not checkpoints.requested
    checkpoints.request()
    assert checkpoints.requested
    checkpoints.save(3)
    assert not checkpoints.requested, "one request is one checkpoint"
    checkpoints.finish()
    assert messages == ["info: checkpoint of step 3 saved on request"]
    assert "step-00000003" in names(tmp_path)
    train(state, 1)
    checkpoints.save(4)
    checkpoints.finish()
    assert len(messages) == 1, "a checkpoint that was not requested is not reported"


def test_a_request_for_a_step_that_is_saved_already_is_reported_too(tmp_path: Path) -> None:
    state, messages = parts(), Messages()
    checkpoints = CheckpointManager(tmp_path, state, notify=messages)
    checkpoints.save(3)
    checkpoints.request()
    checkpoints.save(3, closing=True)
    assert messages == ["info: checkpoint of step 3 saved on request"]


def test_a_requested_checkpoint_that_fails_is_not_reported_as_saved(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    messages = Messages()
    checkpoints = CheckpointManager(tmp_path / "file" / "checkpoints", parts(), notify=messages)
    checkpoints.request()
    checkpoints.save(1)
    checkpoints.finish()
    assert any("no checkpoint of step 1" in message for message in messages)
    assert not any("saved on request" in message for message in messages)
