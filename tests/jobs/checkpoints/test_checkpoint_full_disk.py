"""A disk that is full, then read-only, then writable: each failed write is reported, the next one works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ISOLATED = ("unshare", "--mount", "sh", "-c")
SCRIPT = """
import json, subprocess, sys
from pathlib import Path
from guard import GuardMetrics
from jobs.checkpoints import CheckpointManager
from tests.jobs.checkpoints.checkpoint_fixture import Messages, names, parts, proven

folder, messages, metrics = Path(sys.argv[1]), Messages(), GuardMetrics()
checkpoints = CheckpointManager(folder / "checkpoints", parts(), notify=messages, metrics=metrics)

def remount(options):
    subprocess.run(["mount", "-o", "remount," + options, str(folder)], check=True)

proven(checkpoints, 10)
remount("size=4m")
proven(checkpoints, 20)
remount("ro")
proven(checkpoints, 30)
remount("rw")
proven(checkpoints, 40)
failures = metrics.snapshot()["totals"]["checkpoint_failures"]
print(json.dumps({"messages": messages, "failures": failures, "there": names(folder / "checkpoints")}))
"""


def can_mount() -> bool:
    """Whether this process may mount a small file system for itself."""
    if not shutil.which("unshare"):
        return False
    probe = "mount -t tmpfs -o size=8k none /mnt"
    return subprocess.run([*ISOLATED, probe], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a file system")
def test_each_failed_write_is_reported_and_the_next_one_works(tmp_path: Path) -> None:
    script, disk = tmp_path / "script.py", tmp_path / "disk"
    script.write_text(SCRIPT)
    disk.mkdir()
    command = f"mount -t tmpfs -o size=8k none {disk} && {sys.executable} {script} {disk}"
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [*ISOLATED, command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["messages"] == [
        "warning: no checkpoint of step 10: No space left on device; is the disk full?; training continues",
        "warning: no checkpoint of step 30: Read-only file system; training continues",
    ]
    assert seen["failures"] == 2
    assert seen["there"] == ["step-00000020", "step-00000040"]
