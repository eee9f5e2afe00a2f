"""Real jobs about their network: compiled and channels last, and so deep that its gradient vanishes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.integration.harness.runner import GRADGUARD, Sandbox

pytestmark = pytest.mark.soak

HERE = Path(__file__).parent / "harness"


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    sandbox = Sandbox(tmp_path)
    sandbox.environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[2])])
    return sandbox


def losses(sandbox: Sandbox, name: str) -> list[float]:
    return [row["loss"] for row in sandbox.rows(name, "metrics.jsonl") if "action" in row]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler: g++")
def test_a_compiled_job_with_channels_last_trains_as_a_plain_one(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "compiled")
    common = {
        "workload": "small_workloads:Convolutions",
        "scale": {"workers": 1},
        "data": {"batch_size": 32, "image_size": 8},
    }
    train = {"max_steps": 6, "checkpoint_every_steps": 3}
    fast = {**train, "compile": True, "channels_last": True}
    for name, section in (("plain", train), ("fast", fast)):
        run = sandbox.run(GRADGUARD, "train", sandbox.spec(name, **common, train=section))
        assert run.returncode == 0, run.stdout
        assert "Traceback" not in run.stdout
    plain, compiled = sandbox.result("plain"), sandbox.result("fast")
    assert (compiled["status"], compiled["steps"], compiled["anomalies"]) == ("succeeded", 6, 0)
    assert losses(sandbox, "fast") == pytest.approx(losses(sandbox, "plain"), rel=1e-3)
    assert compiled["metrics"]["test_loss"] == pytest.approx(plain["metrics"]["test_loss"], rel=1e-2)
    assert list((tmp_path / "compiled").rglob("*.so")), "it was compiled"


def test_a_vanishing_gradient_is_named_before_the_first_step_in_the_run_and_in_the_report(
    sandbox: Sandbox,
) -> None:
    spec = sandbox.spec(
        "deep",
        workload="small_workloads:Sigmoids",
        scale={"workers": 2},
        data={"batch_size": 32, "image_size": 8},
        train={"max_steps": 40, "checkpoint_every_steps": 100},
        guard={"dead_steps": 20},
    )
    run = sandbox.run(GRADGUARD, "train", spec)
    assert run.returncode == 0, run.stdout
    assert "pre-flight: vanishing at layer " in run.stdout
    assert "the gradient vanishes on its way back: from " in run.stdout
    folder = sandbox.path / "runs" / "deep"
    assert json.loads((folder / "preflight.json").read_text())["verdict"] == "vanishing"
    (incident,) = sandbox.rows("deep", "incidents.jsonl")
    assert (incident["verdict"], incident["signal"], incident["attempt"]) == ("vanishing", "grad_norm", 20)
    assert f"from {incident['layers'][0]['name']} on" in incident["reason"]
    assert sandbox.result("deep")["anomalies"] == 1
    page = (folder / "report.html").read_text()
    assert f"Vanishing gradient norm at step {incident['step']}" in page
    assert "The gradient vanishes on its way back" in page
