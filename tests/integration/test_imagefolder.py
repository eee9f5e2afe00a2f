"""A ResNet-50 on a folder of image files, two workers that prefetch: the example spec, end to end."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from jobs.data.to_folder import main as to_folder
from tests.integration.harness.runner import GRADGUARD, Sandbox
from tests.jobs.data.image_folder_fixture import break_image

pytestmark = [pytest.mark.slow, pytest.mark.soak]

EXAMPLE = Path(__file__).resolve().parents[2] / "jobs" / "examples" / "resnet50-imagefolder-cpu.yaml"
SMALL = ("train.max_steps=6", "schedule.warmup_steps=2", "data.batch_size=16", "metrics.port=0")

UNREADABLE = ("data.on_broken=error", "preflight=off", "scale.max_failures=0", "model.name=resnet18")


def train(sandbox: Sandbox, *overrides: str) -> tuple[int, str]:
    flags = [part for override in (*SMALL, *overrides) for part in ("--set", override)]
    run = sandbox.run(GRADGUARD, "train", str(EXAMPLE), *flags)
    return run.returncode, run.stdout


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    assert to_folder(["digits", str(tmp_path / "images"), "--limit", "60"]) == 0
    return Sandbox(tmp_path)


def test_the_example_trains_on_image_files_and_counts_the_broken_ones(sandbox: Sandbox) -> None:
    for number, path in enumerate(sorted((sandbox.path / "images" / "val").rglob("*.png"))):
        if number % 20 == 0:
            break_image(path)
    code, output = train(sandbox)
    assert code == 0, output
    result = sandbox.result("resnet50-cpu")
    assert (result["status"], result["steps"], result["world_size"]) == ("succeeded", 6, 2)
    assert result["metrics"]["test_skipped"] == 3
    assert 0 <= result["metrics"]["test_accuracy"] <= 1
    assert "Traceback" not in output
    left = [p for p in psutil.process_iter(["environ"]) if _in(sandbox, p)]
    assert psutil.wait_procs(left, timeout=20)[1] == [], "no process outlives the job"


def test_a_broken_image_ends_the_job_with_its_name(sandbox: Sandbox) -> None:
    for path in (sandbox.path / "images" / "train").rglob("*.png"):
        break_image(path)
    code, output = train(sandbox, *UNREADABLE)
    assert code == 1, output
    error = sandbox.result("resnet50-cpu")["error"]
    assert "is not a readable image" in error
    assert "data.on_broken: skip" in error
    assert "Traceback" not in output


def _in(sandbox: Sandbox, process: psutil.Process) -> bool:
    environment = process.info["environ"] or {}
    return environment.get("HOME") == str(sandbox.path)
