"""The examples that a laptop can run are run as a user would: with the installed command, made shorter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.cluster.session import PACKAGE_ROOT
from tests.integration.harness.runner import GRADGUARD, Sandbox

pytestmark = pytest.mark.slow

EXAMPLES = PACKAGE_ROOT / "jobs" / "examples"
SHORT = (
    "metrics.port=0",
    "train.max_steps=24",
    "schedule.warmup_steps=4",
    "data.batch_size=8",
    "data.test_limit=16",
)
EVERYTHING = (
    "optimizer.name=muon",
    "regularize.l1=0.001",
    "regularize.label_smoothing=0.1",
    "train.precision=bf16",
    "train.ema_decay=0.9",
)


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def test_a_small_gpt_with_regularizers_bf16_and_average_trains_and_writes(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    shutil.copy(EXAMPLES / "gpt-cpu.yaml", tmp_path)
    run = sandbox.run(GRADGUARD, "train", "gpt-cpu.yaml", *sets(*SHORT, *EVERYTHING))
    assert run.returncode == 0, run.stdout
    result = sandbox.result("gpt-cpu")
    assert (result["status"], result["steps"], result["anomalies"]) == ("succeeded", 24, 0)
    assert 2.0 < result["metrics"]["test_loss"] < 5.5
    assert result["metrics"]["test_perplexity"] < 245
    assert "test_perplexity" in run.stdout
    assert "runs/gpt-cpu/samples.txt" in run.stdout
    job = tmp_path / "runs" / "gpt-cpu"
    assert (job / "samples.txt").read_text().count("prompt: ") == 3
    assert "<h2" in (job / "report.html").read_text().partition("Samples</h2>")[0]
    losses = [row["loss"] for row in sandbox.rows("gpt-cpu", "metrics.jsonl") if "action" in row]
    assert losses[-1] < losses[0] - 1


@pytest.mark.soak
def test_a_workload_of_ones_own_is_trained_by_its_import_path(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    shutil.copytree(EXAMPLES / "own_workload", tmp_path, dirs_exist_ok=True)
    run = sandbox.run(GRADGUARD, "train", "spec.yaml", *sets("metrics.port=0"))
    assert run.returncode == 0, run.stdout
    result = sandbox.result("wine")
    assert (result["status"], result["steps"], result["skips"]) == ("succeeded", 100, 1)
    assert result["metrics"]["test_accuracy"] > 0.9
