"""``gradguard list`` and ``status`` of a folder of jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.errors import JobError
from jobs.spec.job_spec import JobSpec
from service.cli.app import app


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a job that ended after 37 steps."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    spec = JobSpec.from_dict({"name": "mine", "storage": str(folder.parent), "train": {"max_steps": 37}})
    (folder / "spec.yaml").write_text(spec.to_yaml())
    result = {"status": "succeeded", "steps": 37, "seconds": 300.0, "metrics": {"test_accuracy": 0.8723}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder.parent


def test_a_job_that_ended_is_listed_with_its_figures_and_folder(runs: Path) -> None:
    listed = CliRunner().invoke(app, ["list", "--address", str(runs)], env={"COLUMNS": "300"}).output
    row = next(line for line in listed.splitlines() if line.strip().startswith("mine"))
    assert row.split()[:7] == ["mine", "succeeded", "37", "87.2", "%", "5", "min"]
    assert str(runs / "mine")[:40] in row


def test_the_status_of_a_job_that_ended_is_one_line_with_its_figures(runs: Path) -> None:
    shown = CliRunner().invoke(app, ["status", "mine", "--address", str(runs)]).output
    assert shown == f"succeeded: 37 steps, accuracy 87.2 %, 5 min, in {runs / 'mine'}\n"


def test_the_folder_of_one_job_is_a_list_of_it(runs: Path) -> None:
    listed = CliRunner().invoke(app, ["list", "--address", str(runs / "mine"), "--json"]).output
    assert [job["id"] for job in json.loads(listed)] == ["mine"]


def test_a_status_that_no_job_can_have_is_refused(runs: Path) -> None:
    with pytest.raises(JobError, match=r"status 'done': a job is one of queued, .*, halted"):
        CliRunner().invoke(app, ["list", "--address", str(runs), "--status", "done"], catch_exceptions=False)


def test_what_a_job_wrote_is_shown_as_it_is_and_hides_no_other_job(runs: Path) -> None:
    odd = runs / "odd"
    odd.mkdir()
    (odd / "spec.yaml").write_text("name: odd")
    (odd / "result.json").write_text(
        '{"status": "failed", "error": "[/b] [red]x \\u001b[2J", "metrics": [1]}'
    )
    (odd / "incidents.jsonl").write_text('{"type": "incident", "id": 1, "step": 3, "signal": "[/loss]"}\n')
    listed = CliRunner().invoke(app, ["list", "--address", str(runs)], env={"COLUMNS": "300"})
    assert (listed.exit_code, "mine" in listed.output) == (0, True)
    assert "[/b] [red]x \ufffd[2J" in listed.output
    assert "[/loss]" in CliRunner().invoke(app, ["incidents", str(odd)]).output


def test_of_many_incidents_the_newest_are_listed_and_the_rest_is_stated(runs: Path) -> None:
    rows = [json.dumps({"type": "incident", "id": n, "step": n, "verdict": "spike"}) for n in range(1, 601)]
    (runs / "mine" / "incidents.jsonl").write_text("\n".join(rows) + "\n")

    def shown(*options: str) -> str:
        return CliRunner().invoke(app, ["incidents", str(runs / "mine"), *options]).output

    lines = shown().splitlines()
    assert [line.split()[0] for line in (lines[1], lines[-2])] == ["101", "600"]
    assert lines[-1] == "earlier ones: --limit shows more than the newest 500, --json has all"
    assert len(shown("--limit", "600").splitlines()) == 601
    assert len(json.loads(shown("--json"))) == 600
    assert [row["id"] for row in json.loads(shown("--json", "--limit", "2"))] == [599, 600]


def test_incidents_of_the_rate_are_listed_with_their_factor(runs: Path) -> None:
    cut = "the learning rate is about 30 times too high; training goes on at 0.0017 of 0.05"
    named = "the learning rate 0.05 is probably about 27 times too high: try 0.0019, or set rate: act"
    rows = [
        {"step": 2, "verdict": "spike", "by_rate": True, "reason": cut},
        {"step": 3, "verdict": "warning", "reason": named},
        {"step": 4, "verdict": "spike", "reason": "loss spike"},
    ]
    journal = "\n".join(json.dumps({"type": "incident", "id": n} | row) for n, row in enumerate(rows))
    (runs / "mine" / "incidents.jsonl").write_text(journal + "\n")
    lines = (
        CliRunner().invoke(app, ["incidents", str(runs / "mine")], env={"COLUMNS": "60"}).output.splitlines()
    )
    assert lines[-2:] == [f"step 2: {cut}", f"step 3: {named}"]
