"""A worker that fills its node's memory is killed by Ray: the job continues, and the cause is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray._private.utils import get_system_memory, get_used_memory

from tests.integration.harness.runner import GRADGUARD, NOISY, noisy

pytestmark = [pytest.mark.slow, pytest.mark.soak]

GIB = 2**30
ALLOWED, EATEN = 3 * GIB, 4 * GIB
SPEC: dict[str, Any] = {
    "workload": NOISY,
    "options": {"eat_at": 8, "eat_mib": EATEN >> 20},
    "scale": {"workers": 1, "max_failures": 5},
    "train": {"max_steps": 12, "checkpoint_every_steps": 3},
}


def test_a_worker_killed_for_its_memory_is_replaced_and_the_cause_is_reported(tmp_path: Path) -> None:
    total, used = get_system_memory(), get_used_memory()
    if total - used < ALLOWED + EATEN:
        pytest.skip(f"needs {(ALLOWED + EATEN) / GIB:g} GiB of free memory")
    sandbox = noisy(tmp_path)
    sandbox.environment |= {
        "RAY_memory_usage_threshold": f"{(used + ALLOWED) / total:.4f}",
        "RAY_memory_monitor_refresh_ms": "50",
    }
    run = sandbox.run(GRADGUARD, "train", sandbox.spec("hungry", **SPEC))
    assert "ran out of memory" in run.stdout, run.stdout
    result = sandbox.result("hungry")
    if run.returncode == 0:
        assert (result["status"], result["steps"]) == ("succeeded", 12)
    else:  # what else runs on this machine has taken the memory meanwhile
        assert result["status"] == "failed"
        assert "memory" in result["error"]
