"""A language model with everything on: trained, stopped, and continued as if it had never been stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.checkpoints import Checkpoints
from jobs.data.errors import DataError
from jobs.report import write_report
from jobs.spec.job_spec import JobSpec
from jobs.training.data_agreement import check_same_data
from jobs.training.samples import as_text
from jobs.workloads import load_workload
from tests.guard.ranks import on_ranks
from tests.jobs.training.training_fixture import Training, assert_same_weights, begin, settle

CPU = torch.device("cpu")
STEPS = 24
EVERYTHING: dict[str, Any] = {
    "workload": "language",
    "model": {
        "name": "gpt",
        "layers": 2,
        "heads": 2,
        "width": 32,
        "context": 16,
        "init": {"scheme": "truncated_normal", "residual": "depth_scaled"},
    },
    "data": {"corpus": "python", "batch_size": 16, "test_limit": 64},
    "optimizer": {"name": "muon", "lr": 0.01},
    "schedule": {"name": "wsd", "warmup_steps": 4, "decay_steps": 8, "final": 0.1},
    "regularize": {
        "l1": 1e-3,
        "l2": 1e-3,
        "label_smoothing": 0.05,
        "z_loss": 1e-4,
        "dropout": 0.1,
        "stochastic_depth": 0.2,
        "gradient_noise": 1e-4,
        "fade": "cosine",
    },
    "train": {"max_steps": STEPS, "precision": "bf16", "micro_batches": 2, "ema_decay": 0.9},
    "guard": {"snapshot": {"every_steps": 4}},
}


def learning(precision: str) -> tuple[Any, Training]:
    spec = JobSpec.from_dict({**EVERYTHING, "train": {**EVERYTHING["train"], "precision": precision}})
    workload = load_workload(spec)
    return workload, begin(workload, spec, STEPS)


def losses_of(training: Training, steps: int) -> list[float]:
    return [report.loss for report in training.train(steps)]


def check_loss(workload: Any, training: Training) -> float:
    """Of the averaged weights, on the held-out text."""
    sums = workload.evaluate(training.parts["average"].module, 0, 1, CPU)
    return workload.metrics(sums)["test_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_with_everything_on_learns_and_resumes_to_the_bit(precision: str, tmp_path: Path) -> None:
    workload, whole = learning(precision)
    losses = losses_of(whole, STEPS // 2)
    kept = whole.keep(tmp_path)
    losses += losses_of(whole, STEPS)
    settle(kept)
    assert losses[0] == pytest.approx(math.log(256), rel=0.1)
    assert np.mean(losses[-4:]) < 0.8 * losses[0]
    assert check_loss(workload, whole) < math.log(256)

    _, resumed = learning(precision)
    assert Checkpoints(tmp_path, resumed.parts).load_latest() == STEPS // 2
    assert losses_of(resumed, STEPS) == losses[STEPS // 2 :]
    assert_same_weights(whole, resumed)


def different(rank: int, world_size: int, folder: Path) -> str:
    """Each rank reads a folder of its own, as on nodes that do not share one."""
    own = folder / f"node-{rank}"
    own.mkdir()
    (own / "text.txt").write_text("all work and no play\n" * (200 + 10 * (rank == 2)))
    model = {**EVERYTHING["model"], "init": "default"}
    data = {"path": str(own), "batch_size": 4}
    workload = load_workload(JobSpec.from_dict({"workload": "language", "model": model, "data": data}))
    try:
        check_same_data(workload, world_size)
    except DataError as error:
        return str(error)
    return "alike"


@pytest.mark.slow
def test_workers_with_different_text_fail_on_every_rank(tmp_path: Path) -> None:
    said = on_ranks(3, different, tmp_path)
    assert len(set(said)) == 1
    assert "rank 2 has" in said[0]
    assert "put the same files on every node" in said[0]


def test_the_report_shows_the_samples_as_text_whatever_they_are(tmp_path: Path) -> None:
    (tmp_path / "samples.txt").write_text(as_text([("Once\n", "upon <b>a</b> \x1b[31m time\x00")]))
    (tmp_path / "result.json").write_text('{"status": "succeeded", "samples": "samples.txt"}')
    page = write_report(tmp_path).read_text()
    assert "upon &lt;b&gt;a&lt;/b&gt; \ufffd[31m time\ufffd" in page
    (tmp_path / "result.json").write_text('{"status": "stopped", "samples": null}')
    assert "upon" not in write_report(tmp_path).read_text(), "those of a run before this one"
