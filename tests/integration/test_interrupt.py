"""Ctrl-C and SIGTERM: the state is kept, nobody is left behind, and the run continues where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.runner import GRADGUARD, Sandbox, alive, descendants, read_until

pytestmark = pytest.mark.slow

CTRL_C_S = 10
"""What is promised: a Ctrl-C ends within ten seconds."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, subprocess.Popen[str], list, str]:
    sandbox = Sandbox(tmp_path_factory.mktemp("interrupted"))
    process = sandbox.start(GRADGUARD, "train", sandbox.spec(train={"max_steps": 150}))
    output = read_until(process, lambda line: "phase=training" in line and "loss=" in line)
    family = descendants(process)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=CTRL_C_S)
    return sandbox, process, family, output + rest


def test_ctrl_c_ends_in_time_with_the_workers_gone(interrupted: tuple) -> None:
    _, process, family, _ = interrupted
    assert process.returncode == 1
    assert len(family) > 5, "Ray's processes were seen while it ran"
    assert alive(family) == []


def test_ctrl_c_keeps_the_state_and_says_how_to_continue(interrupted: tuple) -> None:
    sandbox, _, _, output = interrupted
    result = sandbox.result("digits")
    assert result["status"] == "stopped"
    assert result["steps"] > 0
    assert (sandbox.path / "runs" / "digits" / result["checkpoint"] / "manifest.json").exists()
    assert result["resume"] == "gradguard train digits.yaml --resume"
    assert result["resume"] in output
    assert "Traceback" not in output


def test_the_stopped_run_continues_to_its_end(interrupted: tuple) -> None:
    sandbox, _, _, _ = interrupted
    stopped_at = sandbox.result("digits")["steps"]
    again = sandbox.run(GRADGUARD, "train", "digits.yaml", "--resume")
    assert again.returncode == 0, again.stdout
    assert f"step {stopped_at}" in again.stdout
    assert sandbox.result("digits")["steps"] == 150
    steps = [row["step"] for row in sandbox.rows("digits", "metrics.jsonl") if "action" in row]
    assert steps == list(range(1, 151))


def test_an_interrupt_before_the_first_step_ends_too(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    process = sandbox.start(GRADGUARD, "train", sandbox.spec())
    read_until(process, lambda line: "phase=starting" in line or "starting" in line)
    family = descendants(process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=CTRL_C_S)
    assert process.returncode == 1, output
    assert alive(family) == []


@pytest.fixture(scope="module")
def evaluating(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, str]:
    """A job that is asked to stop in the middle of a long evaluation, as by the end of a node's grace."""
    sandbox = Sandbox(tmp_path_factory.mktemp("evaluating"))
    here = Path(__file__).parent
    sandbox.environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parents[1])])
    spec = sandbox.spec(
        workload="chaos_workload:Noisy",
        scale={"workers": 2, "stop_grace_s": 60.0},
        train={"max_steps": 24, "checkpoint_every_steps": 100},
    )
    sandbox.environment["NOISY_EVALUATIONS"] = "100000"
    process = sandbox.start(GRADGUARD, "train", spec)
    output = read_until(process, lambda line: "phase=evaluating" in line)
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output + rest
    return sandbox, output + rest


def test_a_stop_in_an_evaluation_keeps_the_state_at_its_step(evaluating: tuple[Sandbox, str]) -> None:
    sandbox, output = evaluating
    result = sandbox.result("digits")
    assert (result["status"], result["steps"], result["metrics"]) == ("stopped", 22, {}), output
    assert result["checkpoint"] == "checkpoints/step-00000022"
    assert result["resume"] in output


def test_the_evaluation_that_was_given_up_comes_first_after_the_resume(
    evaluating: tuple[Sandbox, str],
) -> None:
    sandbox, _ = evaluating
    sandbox.environment["NOISY_EVALUATIONS"] = "1"
    again = sandbox.run(GRADGUARD, "train", "digits.yaml", "--resume")
    assert again.returncode == 0, again.stdout
    rows = sandbox.rows("digits", "metrics.jsonl")
    assert [row["step"] for row in rows if "eval" in row] == [22, 24]
    assert [row["step"] for row in rows if "action" in row] == list(range(1, 25))


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    spec = sandbox.spec(scale={"workers": 1, "stop_grace_s": 3600.0}, train={"max_steps": 100_000})
    process = sandbox.start(GRADGUARD, "train", spec)
    read_until(process, lambda line: "phase=training" in line and "loss=" in line)
    family = descendants(process)
    worker = next(p for p in family if "RayTrainWorker" in " ".join(p.cmdline()))
    worker.suspend()  # so that nothing can be saved in answer to the first one
    process.send_signal(signal.SIGINT)
    read_until(process, lambda line: "a second Ctrl-C ends at once" in line)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert alive(family) == []
