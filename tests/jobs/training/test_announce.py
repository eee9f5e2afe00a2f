"""A job that continues with another spec announces to its guard what moves the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from jobs.checkpoints import CheckpointManager
from jobs.checkpoints.spec_match import changed_fields, check_spec
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.training.announce import MOVES_THE_LOSS, announce_changes
from jobs.workloads.vision import VisionWorkload
from tests.jobs.training.training_fixture import Training, begin, settle

STEPS, KEPT = 40, 20
DATA = {"dataset": "digits", "batch_size": 16, "image_size": 8}


class Small(VisionWorkload):
    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def spec_of(**sections: Any) -> JobSpec:
    train = {"max_steps": STEPS, **sections.pop("train", {})}
    return JobSpec.from_dict({"data": DATA, "train": train, **sections})


def steps_of(spec: JobSpec) -> int:
    assert spec.train.max_steps is not None
    return spec.train.max_steps


def manager(folder: Path, run: Training, spec: JobSpec) -> CheckpointManager:
    return CheckpointManager(folder, run.parts, spec=spec.model_dump(mode="json"))


def resumed(folder: Path, before: JobSpec, now: JobSpec) -> tuple[Training, str | None]:
    """A run that continues after 20 steps of another one, and what it announced."""
    workload = Small(before)
    first = begin(workload, before, steps_of(before))
    first.train(KEPT)
    kept = manager(folder, first, before)
    kept.save(KEPT)
    settle(kept)
    run = begin(workload, now, steps_of(now))
    loader = manager(folder, run, now)
    assert loader.load_latest() == KEPT
    return run, announce_changes(run.stepper.guard, run.parts["schedule"], loader.changed)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"train": {"precision": "bf16"}}, "train.precision changed"),
        ({"train": {"micro_batches": 4}}, "train.micro_batches changed"),
        ({"data": {**DATA, "root": "elsewhere"}}, "data.root changed"),
        ({"train": {"max_steps": 400}}, "the learning rate goes from"),
    ],
    ids=str,
)
def test_a_change_that_moves_the_loss_is_announced(
    sections: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    run, announced = resumed(tmp_path, spec_of(), spec_of(**sections))
    assert announced is not None
    assert expected in announced
    assert run.stepper.guard.totals.changes == 1
    assert all(report.applied for report in run.train(KEPT + 10))


def test_what_moves_no_loss_is_not_announced(tmp_path: Path) -> None:
    train = {"checkpoint_keep": 5, "log_layers_every": 7}
    run, announced = resumed(tmp_path, spec_of(), spec_of(train=train))
    assert announced is None
    assert run.stepper.guard.totals.changes == 0


def test_a_longer_run_at_a_constant_rate_is_not_announced(tmp_path: Path) -> None:
    constant = {"schedule": {"name": "constant"}}
    longer = spec_of(**constant, train={"max_steps": 400})
    assert resumed(tmp_path, spec_of(**constant), longer)[1] is None


@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"name": "sgd", "lr": 0.5}},
        {"data": {**DATA, "batch_size": 32}},
        {"regularize": {"label_smoothing": 0.1}},
        {"data": {**DATA, "augment": {"mixup": 0.2}}},
        {"schedule": {"name": "linear"}},
    ],
    ids=str,
)
def test_another_rate_batch_size_loss_or_data_set_is_refused(sections: dict[str, Any]) -> None:
    saved, now = (spec.model_dump(mode="json") for spec in (spec_of(), spec_of(**sections)))
    with pytest.raises(SpecError):
        check_spec(saved, now, KEPT)


def test_each_field_that_moves_the_loss_may_differ() -> None:
    now = spec_of().model_dump(mode="json")
    assert changed_fields(now, now) == []
    for field in MOVES_THE_LOSS[1:]:  # the first is the data themselves, whatever the spec says
        section, name = field.split(".")
        assert name in now[section]
        assert changed_fields({**now, section: {**now[section], name: "other"}}, now) == [field]
