"""What the supervisor makes of what it sees: who may start, what became of an attempt, whose job it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from ray.job_submission import JobDetails, JobStatus, JobType

from jobs.client.files import JobFiles
from jobs.files import write_json_atomic
from jobs.spec import JobSpec
from jobs.submission import MARK, SPEC_VARIABLE, SUPERVISED, entrypoint, runtime_env
from service.store import JobRow, JobStore, open_database
from service.supervise.adopt import adopt
from service.supervise.capacity import free, needs, never_fits, waits_for
from service.supervise.outcome import outcome_of
from service.supervise.ray_api import Capacity

SPEC = JobSpec.from_dict({"name": "j", "data": {"dataset": "digits"}})


def ended(status: JobStatus = JobStatus.FAILED, code: int | None = 1) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id="j-a1",
        entrypoint="python -m jobs.train",
        status=status,
        driver_exit_code=code,
    )


@pytest.mark.parametrize(
    ("details", "result", "log", "becomes"),
    [
        (ended(JobStatus.SUCCEEDED, 0), {"status": "succeeded"}, "", "succeeded"),
        (ended(code=3), {"status": "halted", "error": "budget"}, "", "halted"),
        (ended(code=3), None, "", "halted"),
        (ended(code=2), None, "optimizer.lr: must be positive", "failed"),
        (ended(code=2), None, "x is being trained by another process now", "lost"),
        (ended(code=137), None, "", "lost"),
        (ended(code=None), None, "", "lost"),
        (ended(code=1), {"status": "failed", "error": "the training controller died"}, "", "lost"),
        (ended(code=1), {"status": "failed", "error": "rank 0: ValueError"}, "", "failed"),
        (ended(JobStatus.STOPPED, None), {"status": "stopped"}, "", "stopped"),
        (None, None, "", "lost"),
        (None, {"status": "succeeded"}, "", "succeeded"),
    ],
)
def test_what_became_of_an_attempt(
    tmp_path: Path, details: JobDetails | None, result: dict | None, log: str, becomes: str
) -> None:
    if result is not None:
        (tmp_path / "result.json").write_text(json.dumps(result))
    files = JobFiles(tmp_path)
    outcome = outcome_of(details, files, before=None, stopping=False, log_end=log)
    assert outcome.kind == becomes
    if becomes == "failed":
        assert outcome.reason in ("rank 0: ValueError", "optimizer.lr: must be positive")


def test_the_result_of_an_earlier_attempt_says_nothing_of_this_one_whatever_the_clock(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"status": "succeeded"}')
    files = JobFiles(tmp_path)
    before = files.marks()
    found = outcome_of(None, files, before=before, stopping=False, log_end="")
    assert found.kind == "lost"
    stopped = outcome_of(None, files, before=before, stopping=True, log_end="")
    assert stopped.kind == "stopped"
    write_json_atomic(tmp_path / "result.json", {"status": "succeeded"})
    os.utime(tmp_path / "result.json", (1000, 1000))  # by a machine whose clock is half a century behind
    assert outcome_of(None, files, before=before, stopping=False, log_end="").kind == "succeeded"


def scaled(workers: int, device: str = "gpu") -> JobSpec:
    return JobSpec.from_dict(
        {"name": "j", "scale": {"workers": workers, "device": device}, "data": {"batch_size": 120}}
    )


def test_a_job_waits_for_what_is_missing_and_says_so() -> None:
    cluster = Capacity([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], {"GPU": 1, "CPU": 2})
    just_started = JobRow(id="a", gpus=2.0, cpus=2.0)
    left = free(cluster, [just_started])
    assert left == {"GPU": 2.0, "CPU": 14.0}, "what a job will take counts as taken before it holds it"
    assert waits_for(needs(scaled(2), cluster), left) is None
    assert waits_for(needs(scaled(3), cluster), left) == "waiting for 3 GPUs, 2 free"
    assert waits_for(needs(scaled(15, "cpu"), cluster), left) == "waiting for 15 CPUs, 14 free"
    assert needs(scaled(4, "auto"), cluster)["GPU"] == 4
    assert needs(scaled(5, "auto"), cluster)["GPU"] == 0, "auto takes CPUs where there are too few GPUs"
    never = never_fits(needs(scaled(5)), 5, cluster.nodes)
    assert never is not None
    assert "the cluster has 4" in never


def stranger(submission_id: str, **more: object) -> JobDetails:
    fields = {"entrypoint": "python -m jobs.train x.yaml", "status": JobStatus.RUNNING, **more}
    return JobDetails(type=JobType.SUBMISSION, submission_id=submission_id, start_time=5000, **fields)


def test_jobs_of_ours_are_adopted_once_and_nobody_elses(tmp_path: Path) -> None:
    store = JobStore(open_database(f"sqlite:///{tmp_path}/s.db"))
    ours = runtime_env(SPEC, env={"API_KEY": "k"})
    listing = {
        "by-client": stranger("by-client", metadata={MARK: "job"}, runtime_env=ours),
        "plain": stranger("plain"),
        "other-program": stranger("other-program", entrypoint="python train.py"),
        "of-another-service": stranger("of-another-service", metadata={MARK: "job", SUPERVISED: "x"}),
        "../escape": stranger("../escape"),
    }
    assert adopt(store, listing, tmp_path) == ["by-client", "plain"]
    assert adopt(store, listing, tmp_path) == []
    known, plain = store.get("by-client"), store.get("plain")
    assert known.spec is not None
    assert known.spec["name"] == "j"
    assert known.env == {"API_KEY": "k"}, "and none of the variables that we set"
    assert (plain.spec, plain.max_restarts) == (None, 0), "without its spec it cannot be started again"
    store.engine.dispose()


def test_no_secret_and_nothing_unquoted_is_on_the_command_line() -> None:
    assert entrypoint(resume=True) == "python -m jobs.train --from-environment --resume"
    variables = runtime_env(SPEC, env={"API_KEY": "k"})["env_vars"]
    assert variables["API_KEY"] == "k"
    assert JobSpec.from_dict(yaml.safe_load(variables[SPEC_VARIABLE])) == SPEC
