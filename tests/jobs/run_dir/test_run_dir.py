"""A job's folder: nothing in it is ever lost to a second run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import BUSY, JobError, JobFinished
from jobs.run_dir.jsonl import write_json_atomic
from jobs.run_dir.open_storage import open_storage
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return JobSpec.from_dict({"name": "job", "storage": str(tmp_path)})


@pytest.fixture
def trained(spec: JobSpec) -> RunDir:
    """A folder in which a job has trained and was killed."""
    folder = RunDir(spec.job_dir)
    folder.prepare(spec, resume=False, overwrite=False)
    folder.metrics.write_text('{"attempt": 1}\n')
    return folder


def test_a_prepared_folder_holds_the_whole_spec(spec: JobSpec) -> None:
    folder = RunDir(spec.job_dir)
    folder.prepare(spec, resume=False, overwrite=False)
    assert JobSpec.load(folder.spec) == spec


def test_a_job_that_never_trained_is_simply_started_again(spec: JobSpec) -> None:
    folder = RunDir(spec.job_dir)
    for _ in range(2):
        folder.prepare(spec, resume=False, overwrite=False)
    assert folder.spec.exists()


def test_an_existing_job_is_refused_until_the_user_decides(spec: JobSpec, trained: RunDir) -> None:
    with pytest.raises(JobError, match=r"--resume.*--overwrite"):
        trained.prepare(spec, resume=False, overwrite=False)
    trained.prepare(spec, resume=True, overwrite=False)
    assert trained.metrics.exists()


def test_a_spec_may_continue_an_existing_job(spec: JobSpec, trained: RunDir) -> None:
    trained.prepare(spec.model_copy(update={"resume": "auto"}), resume=False, overwrite=False)
    assert trained.metrics.exists()


def test_overwrite_sets_every_older_run_aside(spec: JobSpec, trained: RunDir, tmp_path: Path) -> None:
    trained.prepare(spec, resume=False, overwrite=True)
    trained.metrics.write_text("second\n")
    trained.prepare(spec, resume=False, overwrite=True)
    assert not trained.metrics.exists()
    assert (tmp_path / "job.1" / "metrics.jsonl").read_text() == '{"attempt": 1}\n'
    assert (tmp_path / "job.2" / "metrics.jsonl").read_text() == "second\n"


def test_a_finished_job_is_not_resumed(spec: JobSpec, trained: RunDir) -> None:
    write_json_atomic(trained.result, {"status": "succeeded"})
    for again in (spec, spec.model_copy(update={"resume": "auto"})):
        with pytest.raises(JobFinished, match="has finished already"):
            trained.prepare(again, resume=again is spec, overwrite=False)
    write_json_atomic(trained.result, {"status": "stopped"})
    trained.prepare(spec, resume=True, overwrite=False)


def test_two_processes_do_not_train_one_job(spec: JobSpec, tmp_path: Path) -> None:
    folder = RunDir(spec.job_dir)
    digits = spec.model_copy(update={"data": spec.data.model_copy(update={"dataset": "digits"})})
    (tmp_path / "spec.yaml").write_text(digits.to_yaml())
    other = (
        "import sys; from pathlib import Path; from jobs.run_dir.paths import RunDir\n"
        "with RunDir(Path(sys.argv[1])).locked(): pass"
    )
    command = (sys.executable, "-c", other, str(spec.job_dir))
    with folder.locked():
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        asked = (sys.executable, "-m", "jobs.train", str(tmp_path / "spec.yaml"))
        busy = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert "JobBusy" in refused.stderr
    assert (busy.returncode, len(busy.stderr.splitlines())) == (BUSY, 1), busy.stderr
    assert subprocess.run(command, check=False).returncode == 0, "the lock went with the block"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = JobSpec.from_dict({"name": "job", "storage": str(tmp_path / "file")})
    with pytest.raises(JobError, match="set storage to another folder"), RunDir(spec.job_dir).locked():
        pass


def test_a_new_job_does_not_take_the_checkpoints_of_another_under_a_url(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    spec = JobSpec.from_dict({"name": "new", "storage": str(tmp_path), "train": {"checkpoint_storage": url}})
    storage = open_storage(spec.checkpoint_place)
    folder = RunDir(spec.job_dir)
    folder.prepare(spec, resume=False, overwrite=False)
    storage.replace_manifest("step-00000010", b"{}")
    for overwrite in (False, True):
        with pytest.raises(JobError, match=f"{url}/new/checkpoints already holds checkpoints"):
            folder.prepare(spec, resume=False, overwrite=overwrite)
    folder.prepare(spec, resume=True, overwrite=False)
