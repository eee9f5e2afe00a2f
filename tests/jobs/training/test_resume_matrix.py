"""Every optimizer, in every precision, with and without accumulation and moving average: six steps, and the
last three of them again from the checkpoint of the third, to the bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from guard import StepReport
from jobs.checkpoints import CheckpointManager
from jobs.spec import optim
from jobs.spec.job_spec import JobSpec
from jobs.workloads.vision import VisionWorkload
from tests.jobs.training.training_fixture import assert_same_weights, begin, settle

STEPS, KEPT = 6, 3
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05},
    "nesterov": {"name": "sgd", "lr": 0.05, "nesterov": True},
    "adam": {"name": "adam", "lr": 0.003, "weight_decay": 0.01},
    "adamw": {"name": "adamw", "lr": 0.003},
    "muon": {"name": "muon", "lr": 0.003},
}
PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("constant", "cosine", "linear", "wsd")


class Small(VisionWorkload):
    """The digits, and a network with statistics, dropout, a convolution and matrices inside."""

    def build_model(self) -> nn.Module:
        body = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        return nn.Sequential(*body, nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def data() -> tuple[VisionWorkload, JobSpec]:
    spec = JobSpec.from_dict({"data": {"dataset": "digits", "batch_size": 16, "image_size": 8}})
    return Small(spec), spec


def assert_resumes(workload: Small, spec: JobSpec, folder: Path) -> None:
    """The second half of the run is the same whether it was interrupted or not."""
    whole = begin(workload, spec, STEPS)
    whole.train(KEPT)
    kept = whole.keep(folder)
    rest = curve(whole.train(STEPS))
    settle(kept)
    assert np.isfinite(rest).all()

    resumed = begin(workload, spec, STEPS)
    assert CheckpointManager(folder, resumed.parts).load_latest() == KEPT
    assert curve(resumed.train(STEPS)) == rest
    assert_same_weights(whole, resumed)


def curve(reports: list[StepReport]) -> list[tuple[float, float]]:
    return [(report.loss, report.grad_norm) for report in reports]


def spec_of(plain: JobSpec, **sections: dict[str, Any]) -> JobSpec:
    return JobSpec.from_dict({**plain.model_dump(mode="json"), **sections})


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_six_steps_resume_to_the_bit(
    optimizer: str,
    precision: str,
    ema_decay: float | None,
    micro_batches: int,
    data: tuple[Small, JobSpec],
    tmp_path: Path,
) -> None:
    workload, plain = data
    train = {"max_steps": STEPS, "precision": precision, "ema_decay": ema_decay}
    spec = spec_of(plain, optimizer=OPTIMIZERS[optimizer], train={**train, "micro_batches": micro_batches})
    assert_resumes(workload, spec, tmp_path)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_resumes_to_the_bit(
    schedule: str, data: tuple[Small, JobSpec], tmp_path: Path
) -> None:
    workload, plain = data
    sections = {"schedule": {"name": schedule, "warmup_steps": 2}, "train": {"max_steps": STEPS}}
    assert_resumes(workload, spec_of(plain, optimizer=OPTIMIZERS["muon"], **sections), tmp_path)


def test_the_matrix_has_every_choice_of_the_spec() -> None:
    train = JobSpec.model_json_schema()["$defs"]["TrainSpec"]["properties"]
    assert set(train["precision"]["enum"]) == set(PRECISIONS)
    assert set(optim.DEFAULTS_BY_OPTIMIZER) == {kind["name"] for kind in OPTIMIZERS.values()}
    assert optim.SCHEDULES == SCHEDULES
