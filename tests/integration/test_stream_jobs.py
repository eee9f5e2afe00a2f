"""A job on a stream: rolled back, killed and continued, it is the uninterrupted one to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.harness.chaos import ChaosRun, Kill, final_weights, same_weights
from tests.integration.harness.runner import GRADGUARD, Sandbox
from tests.jobs.data.streams.stream_fixture import rows, write

pytestmark = pytest.mark.slow


def spec_of(sandbox: Sandbox, name: str) -> str:
    spec: dict[str, Any] = {
        "name": name,
        "workload": "tabular",
        "storage": "runs",
        "scale": {"workers": 2, "max_failures": 3, "timeout_s": 20.0},
        "model": {"width": 16, "layers": 1},
        "data": {"dataset": "table", "root": "rows", "batch_size": 16, "stream": {"shuffle_rows": 64}},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "train": {"max_steps": 300, "checkpoint_every_steps": 20},
        "guard": {"snapshot": {"every_steps": 5}},
        "faults": [
            {"kind": "nan_loss", "step": 7, "rank": 1},
            {"kind": "lr_spike", "step": 40, "factor": 1e6},
        ],
        "metrics": {"port": 0},
    }
    (sandbox.path / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    return f"{name}.yaml"


def test_a_stream_that_is_rolled_back_and_killed_ends_to_the_bit(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    for part in range(4):
        write(tmp_path / "rows" / f"train-{part}.parquet", rows(500, first=500 * part), block=50)
    write(tmp_path / "rows" / "val.parquet", rows(90))
    whole = sandbox.run(GRADGUARD, "train", spec_of(sandbox, "whole"))
    assert whole.returncode == 0, whole.stdout
    killed = ChaosRun(sandbox, spec_of(sandbox, "killed"))
    (blow,) = killed.run([Kill("worker", 60)])
    assert killed.finish() == 0, killed.output
    assert blow["resumed"]
    assert sandbox.result("killed")["rollbacks"] == sandbox.result("whole")["rollbacks"] >= 1
    assert same_weights(*(final_weights(sandbox, job) for job in ("whole", "killed")))
