"""``preflight: strict``: a network that explodes is not trained, on any rank; with ``warn`` it would be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.harness.runner import GRADGUARD, Sandbox

pytestmark = pytest.mark.slow


def test_an_exploding_network_is_refused_before_the_first_step(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    spec = sandbox.spec(
        "exploding",
        preflight="strict",
        model={"name": "squeezenet1_1", "stem": "auto", "init": {"scheme": "kaiming", "gain": 10.0}},
        data={"image_size": 64, "batch_size": 8},
        train={"max_steps": 3},
    )
    run = sandbox.run(GRADGUARD, "train", spec)
    assert run.returncode == 2, run.stdout
    assert "pre-flight: exploding at layer " in run.stdout
    assert "set preflight: warn to train anyway" in run.stdout
    assert "Traceback" not in run.stdout
    folder = sandbox.path / "runs" / "exploding"
    assert json.loads((folder / "preflight.json").read_text())["verdict"] == "exploding"
    assert sandbox.rows("exploding", "metrics.jsonl") == []
    assert not (folder / "result.json").exists()
