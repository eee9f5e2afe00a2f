"""A disk that is full: training continues, the user is warned, and no partial write counts as complete."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.harness.runner import GRADGUARD, SMALL, Sandbox

pytestmark = pytest.mark.slow

ISOLATED = ("unshare", "--mount", "sh", "-c")
SMALL_DISK = "mkdir -p runs && mount -t tmpfs -o size=300k none runs"


def can_mount() -> bool:
    """Whether this process may mount a small file system for itself."""
    if not shutil.which("unshare"):
        return False
    probe = "mount -t tmpfs -o size=300k none /mnt"
    return subprocess.run([*ISOLATED, probe], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a file system")
def test_a_full_disk_does_not_end_the_training(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    spec = sandbox.spec(train={"max_steps": 24}, scale={"workers": 1}, model=SMALL)
    look = "find runs -name 'step-*' -o -name '.step-*'"
    run = sandbox.run(*ISOLATED, f"{SMALL_DISK} && {GRADGUARD} train {spec} && echo left: && {look}")
    assert run.returncode == 0, run.stdout
    assert "digits: succeeded" in run.stdout
    assert "no checkpoint of step 20" in run.stdout
    assert "is the disk full?" in run.stdout
    assert "Traceback" not in run.stdout
    assert run.stdout.strip().endswith("left:"), "no part of a checkpoint stays behind"
