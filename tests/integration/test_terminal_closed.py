"""A terminal or pipe that closes saves the state as Ctrl-C does; a crash is named with its line."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.integration.harness.runner import GRADGUARD, Sandbox, alive, descendants, read_until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sighup")]

END_S = 180

WORKLOAD = """
import ctypes, time
import torch
from torch import nn


class Slow:
    n_train = 64

    def __init__(self, spec):
        self.x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        self.y = (self.x.sum(1) > 0).long()

    def build_model(self):
        torch.manual_seed(0)
        return nn.Linear(8, 2)

    def train_batch(self, ids, epoch, device):
        time.sleep(0.05)
        index = torch.from_numpy(ids.copy())
        return self.x[index].to(device), self.y[index].to(device)

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model, rank, world_size, device):
        return {"n": float(len(self.x[rank::world_size]))}

    def metrics(self, sums):
        return {"samples": sums["n"]}


class Crashing(Slow):
    def train_batch(self, ids, epoch, device):
        if epoch == 1:
            ctypes.string_at(0)
        return super().train_batch(ids, epoch, device)
"""


def with_workload(sandbox: Sandbox, name: str, **scale: object) -> str:
    (sandbox.path / "slow_workload.py").write_text(WORKLOAD)
    sandbox.environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    return sandbox.spec(
        workload=f"slow_workload:{name}",
        scale={"workers": 1, "device": "cpu", "stop_grace_s": END_S / 2, **scale},
        model={},
        data={"batch_size": 16},
        optimizer={"name": "sgd", "lr": 0.01},
        train={"max_steps": 100_000, "checkpoint_every_steps": 100_000},
    )


def close_the_pipe(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.close()


def close_the_terminal(process: subprocess.Popen[str]) -> None:
    """The kernel sends the signal to all processes of the terminal, Ray's and the workers among them."""
    for one in descendants(process):
        one.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    close_the_pipe(process)


@pytest.mark.parametrize("close", [close_the_pipe, close_the_terminal])
def test_the_state_is_saved_and_no_process_stays(
    tmp_path_factory: pytest.TempPathFactory, close: Callable[[subprocess.Popen[str]], None]
) -> None:
    sandbox = Sandbox(tmp_path_factory.mktemp("closed"))
    process = sandbox.start(GRADGUARD, "train", with_workload(sandbox, "Slow"))
    read_until(process, lambda line: "phase=training" in line and "loss=" in line)
    family = descendants(process)
    close(process)
    assert process.wait(END_S) == 1
    result = sandbox.result("digits")
    assert (result["status"], result["error"]) == ("stopped", None)
    assert result["checkpoint"] == f"checkpoints/step-{result['steps']:08d}"
    assert result["steps"] == sandbox.rows("digits", "metrics.jsonl")[-1]["step"] > 0
    assert alive(family) == []


def test_a_crash_is_named_with_its_line_and_its_stack_is_in_the_log(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    sandbox = Sandbox(tmp_path_factory.mktemp("crash"))
    done = sandbox.run(GRADGUARD, "train", with_workload(sandbox, "Crashing", max_failures=0))
    line = WORKLOAD.splitlines().index("            ctypes.string_at(0)") + 1
    said = f"segmentation fault in train_batch, line {line} of slow_workload.py"
    assert done.returncode == 1
    assert sandbox.result("digits")["error"] == f"rank 0: the worker process crashed: {said}"
    assert said in done.stdout
    assert "Traceback" not in done.stdout
    assert "Segmentation fault" in (sandbox.path / "runs" / "digits" / "train.log").read_text()
