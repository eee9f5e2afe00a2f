"""No CUDA, no system packages, no network: the example still trains on real images."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.cluster.session import PACKAGE_ROOT
from tests.integration.harness.runner import GRADGUARD, Sandbox

pytestmark = pytest.mark.slow

ISOLATED = ("unshare", "--mount", "--net", "sh", "-c")
PREPARE = "ip link set lo up && mkdir -p /usr/share/datasets && mount -t tmpfs none /usr/share/datasets"

SHORTER = " ".join(
    f"--set {field}"
    for field in (
        "data.batch_size=64",
        "train.max_steps=90",
        "train.eval_every_epochs=9",
        *("faults[0].step=30", "faults[1].step=55", "faults[2].step=80"),
    )
)
"""The example's own faults, sooner."""


def can_isolate() -> bool:
    """Whether this process may make namespaces without a network and without the system's data sets."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*ISOLATED, PREPARE], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_isolate(), reason="needs the right to make network and mount namespaces")
def test_the_example_trains_on_digits_and_survives_its_faults(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.environment["CUDA_VISIBLE_DEVICES"] = ""
    example = PACKAGE_ROOT / "jobs" / "examples" / "fashion.yaml"
    run = sandbox.run(*ISOLATED, f"{PREPARE} && exec {GRADGUARD} train {example} {SHORTER}")
    assert run.returncode == 0, run.stdout
    assert "digits" in run.stdout
    result = sandbox.result("fashion")
    assert result["metrics"]["test_accuracy"] > 0.85
    assert result["skips"] >= 1
    assert result["rollbacks"] >= 1
