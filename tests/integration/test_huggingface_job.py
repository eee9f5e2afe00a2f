"""A whole job on a Hugging Face model from a local folder, on Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.torchvision_compat import import_torchvision
from tests.integration.harness.runner import GRADGUARD, Sandbox

import_torchvision()
pytest.importorskip("transformers", reason="needs the extra: pip install gradguard[huggingface]")
pytest.importorskip("peft", reason="needs the extra: pip install gradguard[huggingface]")
from tests.jobs.workloads.huggingface_fixture import language_model, spec_of, texts

pytestmark = pytest.mark.slow


def test_an_adapter_is_trained_by_two_workers_past_a_nan(tmp_path: Path) -> None:
    folder, rows = language_model(tmp_path / "model"), texts(tmp_path / "t.jsonl", 200)
    spec = spec_of(
        folder,
        tmp_path / "runs",
        data={"path": str(rows)},
        model={"context": 16, "lora": {"rank": 4}},
        scale={"workers": 2},
        train={"max_steps": 12, "checkpoint_every_steps": 4},
        faults=[{"kind": "nan_loss", "step": 6}],
        metrics={"port": 0},
    )
    sandbox = Sandbox(tmp_path)
    (tmp_path / "hf.yaml").write_text(spec.to_yaml())
    run = sandbox.run(GRADGUARD, "train", "hf.yaml")
    assert run.returncode == 0, run.stdout
    result = sandbox.result("hf")
    assert (result["status"], result["steps"], result["skips"]) == ("succeeded", 12, 1)
    assert result["metrics"]["test_perplexity"] > 1
    assert (tmp_path / "runs" / "hf" / "samples.txt").read_text()
