"""Ctrl-C and SIGTERM: the state is saved, no process stays behind, and the run continues where it stopped."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from jobs.run_dir.open_storage import open_storage
from tests.integration.harness.runner import (
    GRADGUARD,
    NOISY,
    SMALL,
    Sandbox,
    alive,
    descendants,
    noisy,
    read_until,
)
from tests.jobs.checkpoints.s3_fixture import BUCKET, s3_server
from tests.service.cli.test_first_mistakes import documented

pytestmark = pytest.mark.slow

END_S = 120
"""Ten seconds are the rule; on a machine that is busy with other things it takes what it takes."""


STEPS, EPOCH = 132, 22
PAUSE_S = 0.1
"""In each step, so that a fast machine is still on its way when it is interrupted."""
KEYS = "keyname:keysecret"


@dataclass(frozen=True, slots=True)
class Ended:
    """How one process ended that ran the job: its code, all it printed, the processes that came from it, and
    the job's result then, if there was one.
    """

    code: int
    output: str
    family: list[psutil.Process]
    result: dict


class Interrupted:
    """One job of six epochs, started again after each end; its checkpoints are on an S3 server."""

    def __init__(self, sandbox: Sandbox, options: str) -> None:
        self.sandbox = sandbox
        self.url = f"s3://{KEYS}@{BUCKET}/runs?{options}"
        train = {"max_steps": STEPS, "checkpoint_every_steps": 66, "checkpoint_storage": self.url}
        scale = {"stop_grace_s": END_S / 2}
        gentle = {"name": "sgd", "lr": 0.002}
        changes = {"model": SMALL, "optimizer": gentle, "train": train, "scale": scale}
        self.spec = sandbox.spec(workload=NOISY, options={"pause_s": PAUSE_S}, **changes)

    @property
    def place(self) -> str:
        """Where its checkpoints are."""
        return self.url.replace("/runs?", "/runs/digits/checkpoints?")

    def until(
        self, seen: Callable[[str], bool], stop: Callable[[subprocess.Popen[str], list], str], *flags: str
    ) -> Ended:
        """Starts it, and calls ``stop`` with the process and its family when a line has the wanted text."""
        process = self.sandbox.start(GRADGUARD, "train", self.spec, *flags)
        output = read_until(process, seen)
        family = descendants(process)
        output += stop(process, family)
        return Ended(process.returncode, output, family, self._result())

    def _result(self) -> dict:
        written = self.sandbox.path / "runs" / "digits" / "result.json"
        return self.sandbox.result("digits") if written.exists() else {}


def training(line: str) -> bool:
    return "phase=training" in line and "loss=" in line


def ctrl_c(process: subprocess.Popen[str], _: list[psutil.Process]) -> str:
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=END_S)[0]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interrupted]:
    with s3_server() as options:
        yield Interrupted(noisy(tmp_path_factory.mktemp("interrupted")), options)


@pytest.fixture(scope="module")
def first(job: Interrupted) -> Ended:
    return job.until(training, ctrl_c)


@pytest.fixture(scope="module")
def evaluating(job: Interrupted, first: Ended) -> Ended:
    """Asked to stop in the middle of a long evaluation, as by the end of a node's grace."""

    def terminate(process: subprocess.Popen[str], _: list[psutil.Process]) -> str:
        process.send_signal(signal.SIGTERM)
        return process.communicate(timeout=END_S)[0]

    job.sandbox.environment["NOISY_EVALUATIONS"] = "100000"
    ended = job.until(lambda line: "phase=evaluating" in line, terminate, "--resume")
    job.sandbox.environment["NOISY_EVALUATIONS"] = "1"
    return ended


@pytest.fixture(scope="module")
def twice(job: Interrupted, evaluating: Ended) -> Ended:
    """A second Ctrl-C, while the first one waits for workers that cannot save anything."""

    def freeze(process: subprocess.Popen[str], family: list[psutil.Process]) -> str:
        for worker in (p for p in family if "RayTrainWorker" in " ".join(p.cmdline())):
            worker.suspend()
        process.send_signal(signal.SIGINT)
        output = read_until(process, lambda line: "a second Ctrl-C ends at once" in line)
        process.send_signal(signal.SIGINT)
        return output + process.communicate(timeout=60)[0]

    return job.until(training, freeze, "--resume", "--set", "scale.stop_grace_s=3600")


def test_ctrl_c_ends_the_job_with_the_workers_gone(first: Ended) -> None:
    assert first.code == 1, first.output
    assert len(first.family) > 5, "Ray's processes were seen while it ran"
    assert alive(first.family) == []


def test_ctrl_c_saves_the_state_and_shows_how_to_continue(job: Interrupted, first: Ended) -> None:
    result = first.result
    assert result["status"] == "stopped"
    assert 0 < result["steps"] < STEPS
    assert result["checkpoint"] == f"s3://{BUCKET}/runs/digits/checkpoints/step-{result['steps']:08d}"
    assert f"step-{result['steps']:08d}" in open_storage(job.place).names()
    assert result["resume"] == "gradguard train digits.yaml --resume"
    shown = documented("At a service")["Ctrl-C while a job trains here"][1]
    assert result["resume"] == shown.replace("my-job", "digits")
    assert result["resume"] in first.output
    assert "Traceback" not in first.output


def test_a_stop_in_an_evaluation_keeps_the_state_at_its_step(first: Ended, evaluating: Ended) -> None:
    assert f"continuing from the checkpoint of step {first.result['steps']}" in evaluating.output
    result = evaluating.result
    assert (evaluating.code, result["status"]) == (1, "stopped"), evaluating.output
    assert first.result["steps"] <= result["steps"]
    assert result["steps"] % EPOCH == 0
    assert result["metrics"] == first.result["metrics"], "those of the epoch before, if there was one"
    assert result["checkpoint"].endswith(f"/checkpoints/step-{result['steps']:08d}")
    assert result["resume"] in evaluating.output


def test_a_second_ctrl_c_ends_at_once(twice: Ended) -> None:
    assert twice.code == 130, twice.output
    assert "ended at once; continue: gradguard train digits.yaml --set=scale" in twice.output
    assert "Traceback" not in twice.output
    assert alive(twice.family) == []


def test_the_stopped_job_continues_to_its_end_with_the_evaluation_that_was_given_up(
    job: Interrupted, twice: Ended
) -> None:
    again = job.sandbox.run(GRADGUARD, "train", job.spec, "--resume")
    assert again.returncode == 0, again.stdout
    assert job.sandbox.result("digits")["steps"] == STEPS
    rows = job.sandbox.rows("digits", "metrics.jsonl")
    applied = [row["step"] for row in rows if row.get("action") in ("applied", "clipped")]
    assert applied == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "eval" in row] == list(range(EPOCH, STEPS + 1, EPOCH))


def test_the_commands_that_show_a_job_read_its_checkpoints_from_their_storage(
    job: Interrupted, twice: Ended
) -> None:
    run, folder = job.sandbox.run, "runs/digits"
    for place in (folder, job.place):
        listed = run(GRADGUARD, "checkpoints", place, "--verify", "--json")
        assert listed.returncode == 0, listed.stdout
        listing = json.loads(listed.stdout)
        assert listing["place"] == f"s3://{BUCKET}/runs/digits/checkpoints"
        assert [(row["step"], row["state"]) for row in listing["checkpoints"]][-1] == (STEPS, "good")
    report = run(GRADGUARD, "report", folder)
    assert report.returncode == 0, report.stdout
    page = (job.sandbox.path / folder / "report.html").read_text()
    assert "checkpoints" in page
    assert "keysecret" not in page
    assert run(GRADGUARD, "status", "digits", "--address", "runs").stdout.startswith("succeeded: ")
    assert run(GRADGUARD, "incidents", folder).returncode == 0
    for command in ("report", "incidents"):
        refused = run(GRADGUARD, command, job.place)
        assert refused.returncode == 2
        assert refused.stdout.startswith(
            f"s3://{BUCKET}/runs/digits/checkpoints is a URL, which has only checkpoints"
        )


def test_an_interrupt_before_the_first_step_ends_too(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    process = sandbox.start(GRADGUARD, "train", sandbox.spec(model=SMALL))
    read_until(process, lambda line: "phase=starting" in line or "starting" in line)
    family = descendants(process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=END_S)
    assert process.returncode == 1, output
    assert alive(family) == []


@pytest.mark.soak
def test_a_job_whose_folder_was_lost_continues_from_its_checkpoints(
    job: Interrupted, evaluating: Ended
) -> None:
    (job.sandbox.path / "runs").rename(job.sandbox.path / "moved")
    start = int(open_storage(job.place).names()[-1].rpartition("-")[2])
    again = job.sandbox.run(GRADGUARD, "train", job.spec, "--resume")
    assert again.returncode == 0, again.stdout
    assert f"continuing from the checkpoint of step {start}" in again.stdout
    assert "metrics.jsonl lacks rows of before: this is not the folder of that run" in again.stdout
    rows = job.sandbox.rows("digits", "metrics.jsonl")
    assert [row["step"] for row in rows if "action" in row] == list(range(start + 1, STEPS + 1))
