"""A language model with everything on: trained, stopped, and continued as if it had never been stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guard import FaultInjector, GradientGuard, GuardMetrics
from jobs.checkpoints import Checkpoints
from jobs.data.agreement import check_same_data
from jobs.data.cursor import DataCursor
from jobs.data.errors import DataError
from jobs.dropout import set_randomness
from jobs.init import build_initialized
from jobs.optim import build_optimizer, build_schedule, tables_of
from jobs.regularize import Regularizer
from jobs.report import write_report
from jobs.samples import as_text
from jobs.spec import JobSpec
from jobs.stepping import Stepper, make_average, make_scaler
from jobs.workloads import load_workload
from tests.guard.ranks import on_ranks

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


@dataclass
class Trained:
    """One rank's run, without Ray."""

    parts: dict[str, Any]
    stepper: Stepper
    cursor: DataCursor
    workload: Any

    def train(self, steps: int) -> list[float]:
        losses = []
        while self.stepper.guard.steps < steps:
            batch = self.cursor.next_batch()
            losses.append(self.stepper.step(batch.ids, batch.epoch).loss)
        return losses

    def test_loss(self) -> float:
        assert self.stepper.average is not None
        sums = self.workload.evaluate(self.stepper.average.module, 0, 1, CPU)
        return self.workload.metrics(sums)["test_loss"]


def begin(precision: str = "bf16") -> Trained:
    spec = JobSpec.from_dict({**EVERYTHING, "train": {**EVERYTHING["train"], "precision": precision}})
    workload = load_workload(spec)
    torch.manual_seed(spec.seed)
    model = build_initialized(spec, workload)
    set_randomness(model, spec.regularize)
    optimizer = build_optimizer(spec.optimizer, model.parameters(), decay_on="auto", tables=tables_of(model))
    schedule = build_schedule(spec.schedule, optimizer, STEPS)
    scaler, average = make_scaler(CPU, precision), make_average(model, spec.train.ema_decay)
    cursor = DataCursor(workload.n_train, spec.data.batch_size, spec.seed)
    states = {"data": cursor, "average": average}
    guard = GradientGuard(
        model,
        optimizer,
        spec.guard,
        scheduler=schedule,
        scaler=scaler,
        state=states,
        metrics=GuardMetrics(),
    )
    stepper = Stepper(
        workload,
        model,
        optimizer,
        guard,
        Regularizer(spec.regularize, model, total_steps=STEPS, seed=spec.seed),
        FaultInjector((), model=model, optimizer=optimizer),
        CPU,
        spec.train.precision,
        spec.train.micro_batches,
        scaler,
        average,
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "average": average}
    parts |= {"cursor": cursor, "guard": guard, **({} if scaler is None else {"scaler": scaler})}
    return Trained(parts, stepper, cursor, workload)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_with_everything_on_learns_and_resumes_to_the_bit(precision: str, tmp_path: Path) -> None:
    whole = begin(precision)
    losses = whole.train(STEPS // 2)
    whole.stepper.guard.snapshot()
    kept = Checkpoints(tmp_path, whole.parts)
    kept.save(STEPS // 2)
    losses += whole.train(STEPS)
    kept.clean_step()
    kept.clean_step()
    kept.finish()
    assert losses[0] == pytest.approx(math.log(256), rel=0.1)
    assert np.mean(losses[-4:]) < 0.8 * losses[0]
    assert whole.test_loss() < math.log(256)

    resumed = begin(precision)
    assert Checkpoints(tmp_path, resumed.parts).load_latest() == STEPS // 2
    assert resumed.train(STEPS) == losses[STEPS // 2 :]
    for name in ("model", "average"):
        ours, theirs = whole.parts[name].state_dict(), resumed.parts[name].state_dict()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


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
def test_workers_with_different_text_say_so_on_every_rank(tmp_path: Path) -> None:
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
