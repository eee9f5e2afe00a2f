"""Files of the user's that are called as our packages hide nothing, wherever a job starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.integration.harness.cluster import Cluster
from tests.integration.harness.runner import GRADGUARD, Sandbox

WORKLOAD = """
import torch
from torch import nn


class Own:
    n_train = 64

    def __init__(self, spec):
        self.x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        self.y = (self.x.sum(1) > 0).long()

    def build_model(self):
        return nn.Linear(8, 2)

    def train_batch(self, ids, epoch, device):
        index = torch.from_numpy(ids.copy())
        return self.x[index].to(device), self.y[index].to(device)

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model, rank, world_size, device):
        return {"n": float(len(self.x[rank::world_size]))}

    def metrics(self, sums):
        return {"samples": sums["n"]}
"""


def with_namesakes(sandbox: Sandbox) -> None:
    """A spec with a workload of its own, among files with the names of our packages."""
    spec = {
        "name": "namesakes",
        "workload": "mine:Own",
        "storage": "runs",
        "scale": {"workers": 1, "device": "cpu"},
        "data": {"batch_size": 16},
        "train": {"max_steps": 4},
        "metrics": {"port": 0},
    }
    (sandbox.path / "own.yaml").write_text(json.dumps(spec))
    (sandbox.path / "mine.py").write_text(WORKLOAD)
    (sandbox.path / "jobs.py").write_text("x = 1\n")
    (sandbox.path / "guard.py").write_text("x = 1\n")
    (sandbox.path / "random.py").write_text("x = 1\n")
    (sandbox.path / "torch.py").write_text("x = 1\n")
    (sandbox.path / "service").mkdir()
    (sandbox.path / "service" / "__init__.py").write_text("")


def test_the_commands_start_among_files_with_the_names_of_our_packages(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    with_namesakes(sandbox)
    run = sandbox.run(GRADGUARD, "train", "own.yaml", "--set", "optimizer.lr=-1")
    assert run.returncode == 2
    assert "optimizer.lr" in run.stdout
    assert "Traceback" not in run.stdout
    for name in ("jobs.py", "random.py", "torch.py"):  # with -m Python itself looks in this folder first
        (tmp_path / name).unlink()
    run = sandbox.run(sys.executable, "-m", "jobs.train", "own.yaml", "--set", "optimizer.lr=-1")
    assert run.returncode == 2
    assert "optimizer.lr" in run.stdout
    assert "Traceback" not in run.stdout


def test_a_guard_that_was_imported_before_is_named_in_one_line(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    with_namesakes(sandbox)
    for name in ("jobs.py", "random.py", "torch.py"):
        (tmp_path / name).unlink()
    program = "import guard; import sys; sys.argv[0] = '-m'; import jobs"
    run = sandbox.run(sys.executable, "-c", program)
    assert run.returncode == 2
    assert run.stdout.strip() == (
        f"{tmp_path}/guard.py hides GradGuard's package guard: rename it, or move it to another folder"
    )


@pytest.mark.slow
def test_a_job_is_trained_beside_files_with_the_names_of_our_packages(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    with_namesakes(sandbox)
    run = sandbox.run(GRADGUARD, "train", "own.yaml")
    assert run.returncode == 0, run.stdout
    assert sandbox.result("namesakes")["metrics"] == {"samples": 64.0}


@pytest.mark.slow
def test_ray_ships_a_workload_of_ones_own_beside_files_with_our_names(
    cluster: Cluster,
) -> None:
    project, here = cluster.sandbox.project("namesakes"), ("--address", cluster.url)
    with_namesakes(project)
    for name in ("random.py", "torch.py"):  # Ray puts a shipped folder before all others, its own code's too
        (project.path / name).unlink()
    submitted = project.run(GRADGUARD, "submit", "own.yaml", *here, "--working-dir", ".")
    assert submitted.returncode == 0, submitted.stdout
    (project.path / "mine.py").unlink()
    followed = project.run(GRADGUARD, "logs", submitted.stdout.strip(), "--follow", *here)
    assert "4/4" in followed.stdout, followed.stdout
    assert "succeeded" in followed.stdout
