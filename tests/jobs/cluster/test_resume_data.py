"""A resume on other data is refused before Ray starts, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from jobs.checkpoints import CheckpointManager
from jobs.cluster.driver import run_job
from jobs.errors import JobError
from jobs.spec.job_spec import JobSpec
from jobs.training.data_agreement import identity
from jobs.workloads import load_workload
from tests.jobs.checkpoints.checkpoint_fixture import proven


def image_job(root: Path) -> JobSpec:
    for name in ("cat", "dog"):
        (root / "data" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(root / "data" / name / f"{number}.png")
    data = {"dataset": "imagefolder", "root": str(root / "data"), "batch_size": 4, "image_size": 32}
    spec = {
        "name": "job",
        "storage": str(root / "runs"),
        "data": data,
        "model": {"name": "shufflenet_v2_x0_5"},
    }
    return JobSpec.from_dict({**spec, "train": {"max_steps": 9}})


def test_a_renamed_class_is_named(tmp_path: Path) -> None:
    spec = image_job(tmp_path)
    workload = load_workload(spec)
    model = workload.build_model()
    parts = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    proven(CheckpointManager(spec.job_dir / "checkpoints", parts, data=identity(workload)), 4)
    (spec.job_dir / "spec.yaml").write_text("as it was")
    (tmp_path / "data" / "cat").rename(tmp_path / "data" / "kitten_and_zebra")
    with pytest.raises(JobError, match=r"cat is gone, kitten_and_zebra is new.*on_changed=continue"):
        run_job(spec, console=Console(), resume=True)
    assert (spec.job_dir / "spec.yaml").read_text() == "as it was"


def test_other_text_of_the_same_length_has_another_fingerprint(tmp_path: Path) -> None:
    model = {"name": "gpt", "layers": 1, "heads": 1, "width": 8, "context": 8}
    seen = []
    for letter in "ab":
        (tmp_path / "text.txt").write_text(letter * 2000)
        data = {"path": str(tmp_path / "text.txt"), "batch_size": 4}
        spec = JobSpec.from_dict({"workload": "language", "model": model, "data": data})
        seen.append(identity(load_workload(spec)))
    assert seen[0]["samples"] == seen[1]["samples"]
    assert seen[0]["fingerprint"] != seen[1]["fingerprint"]
