"""The report as an artefact of the trackers, written after the workers have closed them."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.trackers import Trackers
from jobs.cluster.driver import track_report
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec


def job(folder: Path, **options: object) -> tuple[JobSpec, RunDir]:
    """A job whose workers have tracked a figure, and whose report is there."""
    spec = JobSpec.from_dict({"name": "a", "storage": str(folder), "track": [{"kind": "csv", **options}]})
    spec.job_dir.mkdir(parents=True)
    trackers = Trackers(spec.track, name="a", folder=spec.job_dir / "track", resume=True)
    trackers.evaluation(7, {"test_accuracy": 0.5})
    trackers.close()
    files = RunDir(spec.job_dir)
    files.report.write_text("<html></html>")
    return spec, files


def test_the_report_joins_what_the_workers_tracked(tmp_path: Path) -> None:
    spec, files = job(tmp_path)
    track_report(spec, files, "succeeded")
    assert (files.path / "track" / "artefacts" / "report.html").read_text() == "<html></html>"
    assert "0.5" in (files.path / "track" / "track.csv").read_text(), "its rows are still there"


@pytest.mark.parametrize("options", [{"artefacts": False}, {"kind": "trackio"}])
def test_no_artefacts_are_sent_where_none_are_wanted_and_a_failure_ends_nothing(
    tmp_path: Path, options: dict[str, object]
) -> None:
    spec, files = job(tmp_path, **options)
    track_report(spec, files, "succeeded")
    assert not (files.path / "track" / "artefacts").exists()
