"""A job whose rate is far too high dies in the middle of the duel that finds a better one, and goes on.

While a third of the rate is tried a worker is killed, then the whole job, then it is interrupted; it ends on
one worker. A batch before that is not finite.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobs.checkpoints import CheckpointManager
from jobs.data.cursor import DataCursor
from jobs.run_dir.reader import RunReader
from tests.integration.harness.chaos import CONTINUES
from tests.integration.harness.kills import find, wait_until
from tests.integration.harness.runner import GRADGUARD, Sandbox, noisy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DUEL, STEPS, BATCH, SEED = 25, 60, 64, 3
SPEC: dict[str, Any] = {
    "workload": "small_workloads:Convolutions",
    "resume": "auto",
    "options": {"pause_s": 0.15},
    "seed": SEED,
    "model": {},
    "data": {"batch_size": BATCH},
    "optimizer": {"name": "adam", "lr": 0.3},
    "train": {"max_steps": STEPS, "checkpoint_every_steps": 5, "eval_every_epochs": 100},
    "guard": {"rate": "act", "snapshot": {"every_steps": 10}},
}
RATE, TRIED = "0.033 of 0.3", "from the start with 0.011 of 0.3"


class Job(NamedTuple):
    """A job that has ended: its folder, its exit code, all that it printed."""

    folder: Path
    code: int
    output: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for row in RunReader(self.folder).rows("metrics.jsonl") if "action" in row]

    @property
    def reasons(self) -> list[str]:
        return [incident.reason for incident in RunReader(self.folder).incidents() if incident.by_rate]


class Disturbed:
    """A job that is started again by the same command, with all that it prints in one log."""

    def __init__(self, sandbox: Sandbox, spec: str) -> None:
        self.sandbox, self.name, self.spec = sandbox, Path(spec).stem, spec
        self.log = sandbox.path / f"{self.name}.out"
        self.start()

    def start(self, *options: str) -> None:
        with self.log.open("a") as log:
            self.process: subprocess.Popen[str] = self.sandbox.start(
                GRADGUARD, "train", self.spec, *options, log=log
            )

    def until(self, *, reason: str, step: int) -> None:
        """Until this step stands under a change of the rate for this reason."""

        def reached() -> bool:
            known = [r for r in self.sandbox.rows(self.name, "incidents.jsonl") if r.get("by_rate")]
            rows = [r for r in self.sandbox.rows(self.name, "metrics.jsonl") if "action" in r]
            return bool(known and reason in known[-1]["reason"] and rows and rows[-1]["step"] >= step)

        assert wait_until(reached, self.process, 0.02), self.log.read_text()

    def until_continued(self, times: int) -> None:
        """Until it has gone on from a checkpoint that often."""
        assert wait_until(
            lambda: len(CONTINUES.findall(self.log.read_text())) >= times, self.process, 0.02
        ), self.log.read_text()

    def end(self) -> Job:
        code = self.process.wait(timeout=300)
        return Job(self.sandbox.path / "runs" / self.name, code, self.log.read_text())


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Job, Job]]:
    """The job that is left alone, and the one that is not."""
    sandbox = noisy(tmp_path_factory.mktemp("duel"))
    alone = Disturbed(sandbox, sandbox.spec("alone", **SPEC))
    nan = {"faults": [{"kind": "nan_loss", "step": 22, "rank": 0}]}
    job = Disturbed(sandbox, sandbox.spec("disturbed", **SPEC, **nan))
    try:
        done = disturbed(job)
        yield alone.end(), done
    finally:
        for started in (alone, job):
            started.process.kill()
            started.process.wait()


def disturbed(job: Disturbed) -> Job:
    job.until(reason=TRIED, step=9)
    worker = find(job.process, "worker", job.sandbox, job.name)
    assert worker is not None
    worker.kill()
    job.until_continued(1)
    job.until(reason=TRIED, step=12)
    job.process.kill()
    job.process.wait()
    job.start()
    job.until_continued(2)
    job.until(reason=TRIED, step=14)
    job.process.send_signal(signal.SIGINT)
    assert job.end().code == 1
    job.start("--set", "scale.workers=1")
    return job.end()


def test_it_ends_as_well_as_the_one_that_is_left_alone(jobs: tuple[Job, Job]) -> None:
    alone, disturbed = jobs
    assert (alone.code, disturbed.code) == (0, 0), disturbed.output
    ends = [RunReader(job.folder).result()["metrics"]["test_loss"] for job in jobs]
    assert ends[1] < 1.1 * ends[0]
    assert "Traceback" not in disturbed.output


def test_the_rate_is_the_better_one_and_nothing_of_the_duel_is_left(jobs: tuple[Job, Job]) -> None:
    for job in jobs:
        assert job.rows[-1]["rate_factor"] == pytest.approx(1 / 9)


def test_every_attempt_is_in_the_metrics_and_every_step_stands_once(jobs: tuple[Job, Job]) -> None:
    for job in jobs:
        assert [row["attempt"] for row in job.rows] == list(range(1, len(job.rows) + 1))
        standing: dict[int, int] = {}
        for row in job.rows:
            if row["action"] == "rolled_back":
                standing = {step: n for step, n in standing.items() if step <= row["step"]}
            elif row["action"] != "skipped":
                standing[row["step"]] = standing.get(row["step"], 0) + 1
        assert standing == dict.fromkeys(range(1, STEPS + 1), 1)


def test_no_batch_is_seen_twice_or_not_at_all(jobs: tuple[Job, Job]) -> None:
    for job in jobs:
        last = max(n for n, row in enumerate(job.rows) if row["action"] == "rolled_back")
        skipped = sum(row["action"] == "skipped" for row in job.rows[last:])
        cursor = DataCursor(1437, BATCH, SEED)
        assert CheckpointManager(job.folder / "checkpoints", {"cursor": cursor}).load_latest() == STEPS
        assert cursor.epoch * cursor.batches_per_epoch + cursor.index == STEPS + skipped


def test_journal_log_and_report_say_what_became_of_the_duel(jobs: tuple[Job, Job]) -> None:
    alone, disturbed = jobs
    assert f"again from the start with {RATE}" in alone.reasons[-1]
    assert TRIED in disturbed.reasons[-2], "which a resume does not lose"
    assert disturbed.reasons[-1].endswith(f"training goes on at {RATE}")
    report = (disturbed.folder / "report.html").read_text()
    for reason in disturbed.reasons:
        assert reason in disturbed.output
        assert f"{reason[1:]}." in report
    starts = [int(step) for step in CONTINUES.findall(disturbed.output)]
    assert len(starts) == 3
    assert all(0 < step <= DUEL for step in starts)
