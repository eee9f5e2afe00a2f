"""Values under the pointer, what to do next, and a spec whose defaults are folded."""

import re
from pathlib import Path

import numpy as np
import pytest

from guard import Incident
from jobs import JobSpec
from jobs.report.advice import advice
from jobs.report.data import read_run
from jobs.report.formats import number
from jobs.report.hover import SLICES, training_values
from jobs.report.page import render
from jobs.report.spec_parts import spec_parts
from jobs.spec.yaml_text import dump_yaml, load_yaml
from tests.jobs.report.report_fixture import nan_incident, rollback_incident, write_job


@pytest.fixture(scope="module")
def job_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("runs") / "fashion")


def test_every_attempt_is_in_one_slice_with_its_values(job_dir: Path) -> None:
    run = read_run(job_dir)
    texts = training_values(run).texts
    assert len(texts) == SLICES
    shown = [[int(n) for n in re.findall(r"\d+", text.partition(",")[0])] for text in texts if text]
    covered = [n for ends in shown for n in range(ends[0], ends[-1] + 1)]
    assert covered == [int(n) for n in run.steps.attempt]
    shown_values = ("loss", "gradient norm", "learning rate")
    assert all(words in text for text in texts if text for words in shown_values)
    assert sum("test accuracy 88.1 %" in text for text in texts) == 1
    highest = number(float(np.nanmax(run.steps.loss)))
    assert sum(f"to {highest}," in text for text in texts) == 1, "the spike is in the range of its slice"


def test_the_report_has_the_values_without_a_script(job_dir: Path) -> None:
    html = render(read_run(job_dir))
    assert html.count(' data-v="attempt') == sum(map(bool, training_values(read_run(job_dir)).texts))
    assert "<script" not in html


def test_the_spec_of_a_report_folds_what_is_default(tmp_path: Path) -> None:
    spec = JobSpec.from_dict({"name": "hot", "optimizer": {"name": "sgd", "lr": 0.07}})
    whole = spec.model_dump(mode="json")
    parts = spec_parts(whole)
    changed = load_yaml(parts.changed)[1]
    assert JobSpec.from_dict(changed) == spec
    assert set(changed) == {"name", "optimizer"}
    assert changed["optimizer"]["lr"] == 0.07
    job = write_job(tmp_path / "hot")
    (job / "spec.yaml").write_text(dump_yaml(whole))
    html = render(read_run(job))
    assert f'<pre class="spec">{parts.changed}' in html
    assert html.index("<summary>All of it, with the defaults</summary>") < html.index("cpus_per_worker")


def test_a_spec_that_cannot_be_read_is_shown_whole() -> None:
    parts = spec_parts({"name": "old", "gone": {"field": 1}})
    assert not parts.folded
    assert "gone" in parts.changed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Nothing to do: the run recovered"),
        ({"outcome": "halted"}, "then resume the job"),
        ({"would": "rollback"}, "set guard.mode to exact"),
        ({"faulty_ranks": [3]}, "machines of rank 3"),
        ({"excluded_ranks": [1]}, "the part of the data that rank 1 reads"),
        ({"bad_samples": [{"sample": 7, "rank": 0}]}, "Look at sample 7: correct it"),
        (
            {"reason": "about 30 times too high", "recovery": {"rate_factor": 0.0333}},
            "with 0.0333 times this optimizer.lr",
        ),
        ({"verdict": "warning", "reason": "27 times too high: try 0.1"}, "lower optimizer.lr that it names"),
    ],
)
def test_an_incident_says_what_to_do_next(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    job = write_job(tmp_path / "fashion")
    known = [incident for incident in read_run(job).incidents if incident.id == 2]
    outcome = known[0].outcome
    row = {**rollback_incident(2, "fashion"), **{k: v for k, v in changes.items() if k != "outcome"}}
    incident = Incident.from_row(row)
    if "outcome" in changes:
        incident = Incident.from_row({**row, "action": "halted"})
    elif not changes:
        assert outcome is not None
        incident = known[0]
    assert said in advice(incident)


def test_a_skipped_batch_needs_nothing() -> None:
    assert advice(Incident.from_row(nan_incident(1, "fashion"))).startswith("One such batch does no harm")
