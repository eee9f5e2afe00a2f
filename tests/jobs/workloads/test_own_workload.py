"""What a workload of the user's own returns is checked where it is used; sizes may be NumPy's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from jobs.init import build_initialized
from jobs.spec.job_spec import JobSpec
from jobs.training.evaluate import try_evaluation
from jobs.workloads import WorkloadError, load_workload
from jobs.workloads.losses import loss_of
from service.cli.app import app

MODULE = """
import numpy as np
import torch

class Base:
    n_train = 8
    def __init__(self, spec): pass
    def build_model(self): return torch.nn.Linear(1, 1)
    def train_batch(self, ids, epoch, device): return torch.ones(2, 1)
    def loss(self, model, batch): return model(batch).mean()
    def evaluate(self, model, rank, world_size, device): return {}
    def metrics(self, sums): return {}

class Numpy(Base):
    def __init__(self, spec): self.n_train = np.sum(np.ones(6, dtype=np.int64))

class Property(Base):
    @property
    def n_train(self): return np.int64(6)

class Float(Base):
    n_train = 6.0

class NoModel(Base):
    def build_model(self): pass

class NoMetrics(Base):
    def metrics(self, sums): pass

class TextMetrics(Base):
    def metrics(self, sums): return {"accuracy": "high"}

class NoSums(Base):
    def evaluate(self, model, rank, world_size, device): pass

class Counts(Base):
    class_counts = [3, 4]

class Ends(Base):
    def loss(self, model, batch): raise SystemExit(0)

class Slow(Base):
    passes = 0
    def evaluate(self, model, rank, world_size, device):
        for _ in range(1000):
            Slow.passes += 1
            model(torch.ones(2, 1))
        return {}

class Broken(Base):
    def __init__(self, spec):
        self.n_train = {}["size"]
"""


class Returns:
    """A workload whose loss is what it was given."""

    def __init__(self, loss: Any) -> None:
        self._loss = loss

    def loss(self, model: nn.Module, batch: torch.Tensor) -> Any:
        return self._loss(model(batch))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda out: out.mean() * 1j, "not one of torch.complex64"),
        (lambda out: out.mean().item(), "not a float: return the tensor itself, without .item()"),
        (lambda out: out.mean().detach().numpy(), "not a ndarray: return the tensor itself"),
        (lambda out: (out.mean(), {"accuracy": 1.0}), "not a tuple: return the loss alone"),
        (lambda out: {"loss": out.mean()}, "not a dict: return the loss alone"),
        (lambda _: None, "not None: it has no return statement"),
        (lambda out: out.square(), r"not a tensor of shape \(3, 1\): return loss.mean\(\)"),
        (lambda out: out.argmax(), "not one of torch.int64"),
        (lambda out: out.mean().detach(), "not one without a gradient"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_refused(loss: Any, says: str) -> None:
    with pytest.raises(WorkloadError, match=f"loss.. must return a scalar tensor.*{says}") as caught:
        loss_of(Returns(loss), nn.Linear(2, 1), torch.ones(3, 2))
    assert "\n" not in str(caught.value)
    assert caught.value.retry is False


def test_a_loss_of_one_number_in_any_shape_is_a_scalar() -> None:
    found = loss_of(Returns(lambda out: out.mean().reshape(1)), nn.Linear(2, 1), torch.ones(3, 2))
    assert found.shape == ()
    assert found.requires_grad
    with torch.no_grad():
        loss_of(Returns(lambda out: out.mean()), nn.Linear(2, 1), torch.ones(3, 2))


@pytest.mark.parametrize("name", ["Numpy", "Property"])
def test_a_size_from_numpy_is_taken(name: str, module: str) -> None:
    assert load_workload(JobSpec.from_dict({"workload": f"{module}:{name}"})).n_train == 6


def test_a_plain_int_is_made_of_it_where_it_can_be_set(module: str) -> None:
    assert type(load_workload(JobSpec.from_dict({"workload": f"{module}:Numpy"})).n_train) is int
    assert np.int64(6) == 6


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Float", "n_train must be the size of the training set, not 6.0"),
        ("Broken", r"cannot be made: KeyError: 'size' \(__init__, line 52 of own_.*\.py\)"),
    ],
)
def test_what_cannot_be_used_is_one_line(name: str, says: str, module: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        load_workload(JobSpec.from_dict({"workload": f"{module}:{name}"}))


def test_a_model_that_is_none_is_refused(module: str) -> None:
    spec = JobSpec.from_dict({"workload": f"{module}:NoModel"})
    with pytest.raises(WorkloadError, match=r"must return a torch.nn.Module, not a NoneType"):
        build_initialized(spec, load_workload(spec))


def test_a_module_beside_the_spec_is_found_from_any_folder(tmp_path: Path) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    (project / "mine_beside.py").write_text(MODULE)
    spec = {"workload": "mine_beside:Base", "scale": {"device": "cpu"}, "data": {"batch_size": 2}}
    (project / "own.yaml").write_text(json.dumps(spec))
    gradguard = Path(sys.executable).with_name("gradguard")
    done = subprocess.run(
        [gradguard, "check", "../project/own.yaml", "--no-preflight"], cwd=elsewhere, capture_output=True
    )
    assert done.returncode == 0
    done = subprocess.run(
        [gradguard, "check", "../project/own.yaml"], cwd=elsewhere, capture_output=True, text=True
    )
    assert "no module" not in done.stderr
    assert "every sample is constant" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NoMetrics", r"metrics\(\) must return a dict of numbers by name, not a NoneType"),
        ("TextMetrics", r"metrics\(\) must return numbers, but accuracy is a str"),
        ("NoSums", r"evaluate\(\) must return a dict of sums by name, not a NoneType"),
        ("Counts", "class_counts must be a dict, .* not a list"),
        ("Ends", r"its code ends the program with exit\(0\) \(loss, line \d+ of "),
    ],
)
def test_check_finds_what_would_end_a_job_later(tmp_path: Path, name: str, says: str, module: str) -> None:
    (tmp_path / "own.json").write_text(
        json.dumps({"workload": f"{module}:{name}", "data": {"batch_size": 4}})
    )
    with pytest.raises(WorkloadError, match=says):
        CliRunner().invoke(app, ["check", str(tmp_path / "own.json")], catch_exceptions=False)


def test_check_begins_a_long_evaluation_and_no_more(module: str) -> None:
    workload = load_workload(JobSpec.from_dict({"workload": f"{module}:Slow", "data": {"batch_size": 4}}))
    try_evaluation(workload, workload.build_model(), 1, torch.device("cpu"))
    assert workload.passes == 2
