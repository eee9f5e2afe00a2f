"""A module of the user's with the name of one of our packages is named, whatever imports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload
from jobs.workloads.errors import WorkloadError


def test_a_workload_in_a_folder_called_jobs_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "own.py").write_text("class Own: pass\n")
    with pytest.raises(
        WorkloadError, match=f"{tmp_path}/jobs has the name of GradGuard's package jobs: rename"
    ):
        load_workload(JobSpec.from_dict({"workload": "jobs.own:Own"}))


def test_a_workload_that_imports_a_guard_of_its_own_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guard.py").write_text("limit = 1\n")
    (tmp_path / "imports_guard.py").write_text("from guard import limit\nclass Own: pass\n")
    with pytest.raises(WorkloadError, match=f"{tmp_path}/guard.py has the name of GradGuard's package guard"):
        load_workload(JobSpec.from_dict({"workload": "imports_guard:Own"}))
