"""Whole jobs of divided models: interrupted by Ctrl-C, and continued under another layout."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs import load_model
from jobs.cluster.session import PACKAGE_ROOT
from tests.integration.harness.runner import GRADGUARD, Sandbox, read_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 40
GPT: dict[str, Any] = {
    "workload": "language",
    "model": {"name": "gpt", "stem": "auto", "layers": 2, "heads": 4, "width": 32, "context": 32},
    "data": {"path": str(PACKAGE_ROOT / "jobs" / "SPEC.md"), "batch_size": 16, "test_limit": 9},
    "optimizer": {"name": "adamw", "lr": 0.003},
    "train": {"max_steps": STEPS, "checkpoint_every_steps": 10},
}


def spec(sandbox: Sandbox, name: str, workers: int, parallel: dict[str, Any]) -> str:
    path = sandbox.path / f"{name}.yaml"
    scale = {"workers": workers, "cpus_per_worker": 0.5, "stop_grace_s": 60}
    document = {**GPT, "name": name, "storage": "runs", "scale": scale, "parallel": parallel}
    path.write_text(json.dumps({**document, "metrics": {"port": 0}}))
    return path.name


@pytest.mark.parametrize(
    ("name", "workers", "parallel"),
    [
        ("fsdp2", 2, {"kind": "fsdp2", "activation_checkpointing": "block"}),
        ("hsdp", 4, {"kind": "hsdp"}),
        ("tensor", 2, {"tensor": 2}),
    ],
)
def test_a_job_is_interrupted_and_continues_with_ddp(
    tmp_path: Path, name: str, workers: int, parallel: dict[str, Any]
) -> None:
    sandbox = Sandbox(tmp_path)
    file = spec(sandbox, name, workers, parallel)
    process = sandbox.start(GRADGUARD, "train", file, f"--set=train.max_steps={100 * STEPS}")
    seen = read_until(process, lambda line: "step" in line and "loss" in line)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=300)
    stopped = sandbox.result(name)
    assert stopped["status"] == "stopped", seen + rest
    assert stopped["checkpoint"]

    last = stopped["steps"] + STEPS
    spec(sandbox, name, 1, {})
    run = sandbox.run(GRADGUARD, "train", file, "--resume", f"--set=train.max_steps={last}")
    assert run.returncode == 0, run.stdout
    assert f"continuing from the checkpoint of step {stopped['steps']}" in run.stdout
    result = sandbox.result(name)
    assert (result["status"], result["steps"]) == ("succeeded", last)
    assert result["metrics"]["test_loss"] < 4.0
    assert load_model(tmp_path / "runs" / name) is not None
