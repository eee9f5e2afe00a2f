"""A real sweep on a real Ray: a bad trial is ended early, Ctrl-C saves, ``resume`` finishes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from jobs.cluster.session import ray_session
from jobs.errors import JobError
from jobs.sweep.run import run_sweep
from jobs.sweep.spec import SweepSpec

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_a_sweep_prunes_is_interrupted_and_continues(tmp_path: Path) -> None:
    sweep = SweepSpec(
        name="rates",
        base={
            "storage": str(tmp_path),
            "workload": "tests.jobs.sweep.line_workload:Line",
            "options": {"rows": 256},
            "data": {"batch_size": 16},
            "optimizer": {"name": "sgd"},
            "train": {"max_steps": 12, "eval_every_steps": 4, "checkpoint_every_steps": 4},
            "faults": [{"kind": "nan_loss", "step": 2}],
            "metrics": {"port": 0},
            "preflight": "off",
        },
        parameters={"optimizer.lr": [0.05, 1e-9]},
        early_stopping={"grace": 1, "reduction": 2},
        concurrent=1,
    )
    lines: list[str] = []

    def interrupt_the_second(line: str) -> None:
        lines.append(line)
        if line.startswith("trial 2 of 2"):
            os.kill(os.getpid(), signal.SIGINT)

    with ray_session(num_cpus=1):
        first = {trial.number: trial for trial in run_sweep(sweep, show=interrupt_the_second)}
        assert first[1].status == "succeeded"
        assert first[1].incidents == 1, "the guard's incidents are a column"
        assert first[2].status in ("stopped", "waiting")
        assert "saving the state of the trials" in lines
        with pytest.raises(JobError, match="continue it with --resume"):
            run_sweep(sweep, show=lines.append)
        best, worst = run_sweep(sweep, show=lines.append, resume=True)
    assert (best.number, best.status, best.value) == (1, "succeeded", first[1].value)
    assert (worst.status, worst.evaluations) == ("pruned", 1)
    saved = json.loads((tmp_path / "rates" / "sweep.json").read_text())
    assert saved["best"] == best.folder == str(tmp_path / "rates" / "rates-1")
    assert Path(best.folder, "report.html").exists()
