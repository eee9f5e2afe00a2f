"""What the supervisor makes of what it sees: who may start, what became of an attempt, whose job it is."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from ray.job_submission import JobDetails, JobStatus, JobType

from jobs.client.job_files import JobFiles
from jobs.client.submission import (
    LARGEST_KEPT,
    MARK,
    SPEC_VARIABLE,
    SUPERVISED,
    entrypoint,
    note_folder,
    noted,
    noted_package,
    runtime_env,
)
from jobs.cluster.session import JOB_CONFIG_VAR
from jobs.errors import BAD_INPUT, BUSY, ENDED
from jobs.notify import Notifier
from jobs.run_dir.jsonl import write_json_atomic
from jobs.run_dir.result import CAUSES
from jobs.spec.job_spec import JobSpec
from jobs.spec.notify import NotifySpec
from service.reconcile.adopt import adopt, complete_adopted
from service.reconcile.capacity import free, never_fits, resources_of, waits_for
from service.reconcile.job_reconciler import LONGEST_BACKOFF_S, JobReconciler, in_backoff, spec_for
from service.reconcile.log_spool import LogTails
from service.reconcile.outcome import AttemptOutcome, outcome_of, without_secrets
from service.reconcile.ray_api import Capacity, RayApi
from service.store import JobRow, JobStore, Packages, open_database
from tests.jobs.notify.receiver import receiving
from tests.waiting import until

SPEC = JobSpec.from_dict({"name": "j", "data": {"dataset": "digits"}})


def ended(status: JobStatus = JobStatus.FAILED, code: int | None = 1) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id="j-a1",
        entrypoint="python -m jobs.train",
        status=status,
        driver_exit_code=code,
    )


def test_an_outcome_is_stored_without_the_secrets_that_it_quotes() -> None:
    text = "cannot log in with hunter2hunter2"
    outcome = AttemptOutcome("failed", text, 1, {"error": text, "steps": 7})
    shown = without_secrets(outcome, {"options": {"api_key": "hunter2hunter2"}}, {})
    assert shown.reason == f"cannot log in with {'*' * 14}"
    assert shown.result == {"error": shown.reason, "steps": 7}


@pytest.mark.parametrize(
    ("details", "result", "log", "becomes"),
    [
        (ended(JobStatus.SUCCEEDED, 0), {"status": "succeeded"}, "", "succeeded"),
        (ended(code=3), {"status": "halted", "error": "budget"}, "", "halted"),
        (ended(code=3), None, "", "halted"),
        (ended(code=2), None, "optimizer.lr: must be positive", "failed"),
        (ended(code=4), None, "", "lost"),
        (ended(code=137), None, "", "lost"),
        (ended(code=None), None, "", "lost"),
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


RESTARTED = {"cluster": True, "job": False, "out_of_memory": False, "worker_lost": False, "stalled": False}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("error", ["in any words", "the training controller died", "Ray's raylet died"])
def test_the_cause_decides_about_a_restart_and_the_wording_of_the_error_does_not(
    tmp_path: Path, cause: str, error: str
) -> None:
    result = {"status": "failed", "error": error, "cause": cause}
    (tmp_path / "result.json").write_text(json.dumps(result))
    outcome = outcome_of(ended(), JobFiles(tmp_path), before=None, stopping=False, log_end=error)
    assert (outcome.kind == "lost") == RESTARTED[cause]
    assert outcome.reason == error


@pytest.mark.parametrize("log", ["", "x is being trained by another process now", "in any words"])
def test_without_a_result_the_exit_code_decides_whatever_the_log(log: str) -> None:
    def kind(code: int | None) -> str:
        return outcome_of(ended(code=code), None, before=None, stopping=False, log_end=log).kind

    assert {code: kind(code) for code in (1, BAD_INPUT, BUSY, -9, -15, 137, 143, None)} == {
        **{1: "failed", BAD_INPUT: "failed", BUSY: "lost"},
        **dict.fromkeys((-9, -15, 137, 143, None), "lost"),
    }


@pytest.mark.parametrize("cause", [["cluster"], {"cluster": 1}, "driver_lost", 7, None])
def test_a_cause_that_no_driver_writes_starts_nothing_again(tmp_path: Path, cause: object) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"status": "failed", "cause": cause}))
    outcome = outcome_of(ended(), JobFiles(tmp_path), before=None, stopping=False, log_end="")
    assert outcome.kind == "failed"


def test_the_result_of_an_earlier_attempt_is_ignored_whatever_the_clock(tmp_path: Path) -> None:
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


def test_a_job_waits_for_what_is_missing_and_names_it() -> None:
    cluster = Capacity([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], {"GPU": 1, "CPU": 2})
    just_started = JobRow(id="a", gpus=2.0, cpus=2.0)
    left = free(cluster, [just_started])
    assert left == {"GPU": 2.0, "CPU": 14.0}, "what a job will take counts as taken before it holds it"
    assert waits_for(resources_of(scaled(2), cluster), left) is None
    assert waits_for(resources_of(scaled(3), cluster), left) == "waiting for 3 GPUs, 2 free"
    assert waits_for(resources_of(scaled(15, "cpu"), cluster), left) == "waiting for 15 CPUs, 14 free"
    assert resources_of(scaled(4, "auto"), cluster)["GPU"] == 4
    assert resources_of(scaled(5, "auto"), cluster)["GPU"] == 0, (
        "auto takes CPUs where there are too few GPUs"
    )
    never = never_fits(resources_of(scaled(5)), 5, cluster.nodes)
    assert never is not None
    assert "the cluster has 4" in never


def stranger(submission_id: str, **more: object) -> JobDetails:
    fields = {"entrypoint": "python -m jobs.train x.yaml", "status": JobStatus.RUNNING, **more}
    return JobDetails(type=JobType.SUBMISSION, submission_id=submission_id, start_time=5000, **fields)


def test_only_our_jobs_are_adopted_and_each_once(tmp_path: Path) -> None:
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
    assert known.max_restarts > 0
    old = {"old": stranger("old", metadata={MARK: "job"}, runtime_env=ours, status=JobStatus.FAILED)}
    adopt(store, old, tmp_path)
    assert store.get("old").max_restarts == 0, "it ended before anybody looked"
    store.engine.dispose()


def said_by_the_job(
    monkeypatch: pytest.MonkeyPatch, folder: Path, spec: JobSpec, **metadata: str
) -> dict[str, object]:
    """What a job leaves behind that Ray started in this folder under the id ``plain``."""
    job_config = {
        "runtime_env": {"working_dir": "gcs://_ray_pkg_0123.zip"},
        "metadata": {"job_submission_id": "plain", **metadata},
    }
    monkeypatch.setenv(JOB_CONFIG_VAR, json.dumps(job_config))
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder)
    note_folder(spec)
    return noted("plain")


def test_an_adopted_job_that_noted_its_spec_can_be_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore(open_database(f"sqlite:///{tmp_path}/s.db"))
    packages, root = Packages(store.engine), tmp_path / "gradguard"
    adopt(store, {"plain": stranger("plain")}, root)
    assert not complete_adopted(store, packages, store.get("plain"), root), "it has not said anything yet"
    (tmp_path / "wd").mkdir()
    (tmp_path / "wd" / "mine.py").write_text("x = 1")
    spec = SPEC.model_copy(update={"storage": str(root / "runs")})
    note = said_by_the_job(monkeypatch, tmp_path / "wd", spec)
    assert complete_adopted(store, packages, store.get("plain"), root)
    assert complete_adopted(store, packages, store.get("plain"), root), "twice is as good as once"
    row = store.get("plain")
    assert row.folder == str(root / "runs" / "j")
    assert row.max_restarts == spec.scale.max_failures
    assert spec_for(row) == spec, "under its own name, not under Ray's"
    package = packages.content(row.working_dir or "")
    assert zipfile.ZipFile(io.BytesIO(package or b"")).namelist() == ["mine.py"]
    kinds = [event.kind for event in store.events("plain")]
    assert kinds == ["state", "note"]
    (root / ".submissions" / str(note["working_dir"])).write_bytes(b"changed by somebody")
    assert noted_package(note, root) is None
    assert noted_package({"working_dir": "../s.db"}, root) is None
    store.engine.dispose()


def test_a_supervised_job_notes_only_its_folder_and_a_large_working_dir_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wd").mkdir()
    supervised = said_by_the_job(monkeypatch, tmp_path / "wd", SPEC, **{SUPERVISED: "j"})
    assert sorted(supervised) == ["folder", "job"]
    (tmp_path / "wd" / "link").symlink_to("/etc/passwd")
    assert "is a link" in str(said_by_the_job(monkeypatch, tmp_path / "wd", SPEC)["not_kept"])
    (tmp_path / "wd" / "link").unlink()
    (tmp_path / "wd" / "data").write_bytes(os.urandom(LARGEST_KEPT + 1))
    assert "20 MiB" in str(said_by_the_job(monkeypatch, tmp_path / "wd", SPEC)["not_kept"])


def test_a_spec_that_expands_without_end_is_no_spec(tmp_path: Path) -> None:
    bomb = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    environment = {
        "env_vars": {SPEC_VARIABLE: f"name: j\noptions:\n  {bomb.replace(chr(10), chr(10) + '  ')}"}
    }
    store = JobStore(open_database(f"sqlite:///{tmp_path}/s.db"))
    adopt(store, {"bomb": stranger("bomb", metadata={MARK: "job"}, runtime_env=environment)}, tmp_path)
    assert store.get("bomb").spec is None
    store.engine.dispose()


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_job_that_waits_for_its_next_attempt_waits_no_longer_when_the_clock_jumps(jump_s: float) -> None:
    set_at = 1_000_000.0
    job = JobRow(id="j", not_before=set_at + LONGEST_BACKOFF_S)
    assert in_backoff(job, set_at)
    assert not in_backoff(job, set_at + LONGEST_BACKOFF_S)
    assert not in_backoff(job, set_at + jump_s)


def test_no_secret_and_nothing_unquoted_is_on_the_command_line() -> None:
    assert entrypoint(resume=True) == "python -P -m jobs.train --from-environment --resume"
    variables = runtime_env(SPEC, env={"API_KEY": "k"})["env_vars"]
    assert variables["API_KEY"] == "k"
    assert JobSpec.from_dict(yaml.safe_load(variables[SPEC_VARIABLE])) == SPEC


def test_the_receivers_of_the_service_are_told_how_a_job_ended(tmp_path: Path) -> None:
    store = JobStore(open_database(f"sqlite:///{tmp_path}/s.db"))
    details = stranger("plain")
    adopt(store, {"plain": details}, tmp_path)

    async def no_log(_: str) -> AsyncIterator[str]:
        return
        yield

    tails = LogTails(no_log, tmp_path)
    with receiving() as receiver, Notifier([NotifySpec(url=receiver.url)]) as notices:
        reconciler = JobReconciler(store, RayApi("http://127.0.0.1:1"), tails, tmp_path, notices)
        over = details.model_copy(update={"status": JobStatus.FAILED, "driver_exit_code": 1})
        until(
            lambda: reconciler.reconcile(store.get("plain"), over, None) or store.get("plain").state in ENDED
        )
        notices.close()
        (post,) = receiver.posts
    tails.close()
    store.engine.dispose()
    notice = json.loads(post[2])
    assert (notice["job"], notice["event"]) == ("plain", "failed")
    assert notice["sentence"].startswith("plain failed after 0 steps")
