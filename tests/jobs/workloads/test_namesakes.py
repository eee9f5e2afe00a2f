"""A module of the user's with the name of one of our packages is named, whatever imports it."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_a_workload_in_a_file_that_is_called_as_one_of_pythons_modules_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colorsys.py").write_text("class Own: pass\n")
    with pytest.raises(WorkloadError, match=f"no class Own .{tmp_path}/colorsys.py has the name of a module"):
        load_workload(JobSpec.from_dict({"workload": "colorsys:Own"}))


def test_files_beside_the_spec_hide_nothing_in_this_process_or_those_it_starts(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("class Own: pass\n")
    (tmp_path / "my_own_names.py").write_text("import colorsys\nhsv = colorsys.rgb_to_hsv\n")
    program = (
        "import pathlib, subprocess, sys\n"
        "from jobs.spec.imported import find_modules_in\n"
        "find_modules_in(pathlib.Path(sys.argv[1]))\n"
        "inner = 'from jobs.spec.imported import import_module; import_module(\"my_own_names\").hsv'\n"
        "subprocess.run([sys.executable, '-c', inner], check=True)\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": root}
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False)
    assert run.returncode == 0
