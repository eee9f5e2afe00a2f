import json
import math

import pytest
import torch

from guard import GradientGuard
from jobs.report.data import read_run
from jobs.report.summary import Summary, figures_of_rows, guard_words, headline, summarize
from jobs.run_dir.incidents import join_outcomes
from jobs.run_dir.jsonl import write_json_atomic
from jobs.run_dir.result import complete
from jobs.spec.job_spec import JobSpec
from tests.jobs.report.report_fixture import (
    BOOM_AT,
    NAN_AT,
    TARGET,
    nan_incident,
    result,
    rollback_incident,
    write_job,
    write_rows,
)


def row(attempt, step, **fields):
    return {"attempt": attempt, "step": step, "action": "applied", "loss": 1.0, "verdict": "ok", **fields}


def run_of(tmp_path, *rows):
    write_rows(tmp_path / "metrics.jsonl", rows)
    return read_run(tmp_path)


def test_a_rollback_discards_the_attempts_beyond_its_target(tmp_path):
    run = read_run(write_job(tmp_path / "job"))
    ((first, last),) = run.rolled_back
    by_attempt = dict(zip(run.steps.attempt, run.steps.step, strict=True))
    assert (by_attempt[first - 1], by_attempt[first]) == (TARGET, TARGET + 1)
    assert by_attempt[last] == TARGET
    assert last == BOOM_AT + 3


def test_a_second_rollback_to_an_earlier_step_discards_only_what_still_stands(tmp_path):
    steps = [1, 2, 3, 4, 2, 3, 1, 2]
    targets = {5: 2, 7: 1}
    run = run_of(
        tmp_path, *(row(i + 1, step, rolled_back_to=targets.get(i + 1)) for i, step in enumerate(steps))
    )
    assert run.rolled_back == ((3, 5), (2, 7))


def test_a_restart_from_a_checkpoint_replaces_the_history_after_it(tmp_path):
    layers = {"layers": {"fc": 1.0}, "local_norms": [1.0]}
    evaluation = {"attempt": 4, "step": 4, "eval": {"test_accuracy": 0.5}}
    before = [row(i, i, loss=9.0, **layers) for i in range(1, 6)]
    again = [row(i, i, loss=2.0) for i in range(4, 8)]
    run = run_of(tmp_path, *before, evaluation, *again)
    assert run.steps.attempt.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert run.steps.loss.tolist() == [9, 9, 9, 2, 2, 2, 2]
    assert run.layers.attempts.tolist() == run.ranks.attempts.tolist() == [1, 2, 3]
    assert run.evaluations == ()
    assert run.restarts == 1


def test_nonfinite_values_are_flagged_and_missing_ones_are_not(tmp_path):
    run = run_of(
        tmp_path,
        row(1, 1, loss=math.nan),
        row(2, 2, loss=None),
        row(3, 3, loss="text"),
        row(4, 4, loss=-math.inf),
    )
    assert run.steps.loss_nonfinite.tolist() == [True, False, False, True]
    assert all(math.isnan(loss) for loss in run.steps.loss)


def test_layers_keep_the_order_of_the_model_and_late_ones_follow(tmp_path):
    run = run_of(
        tmp_path, row(1, 1, layers={"b": 1.0, "a": math.inf}), row(2, 2, layers={"c": 1.0, "a": 2.0})
    )
    assert run.layers.names == ("b", "a", "c")
    assert run.layers.values[0].tolist() == pytest.approx([1.0, math.inf, math.nan], nan_ok=True)


def test_local_norms_that_were_not_taken_are_not_taken_for_nan(tmp_path):
    run = run_of(
        tmp_path,
        row(1, 1, grad_norm=1.0, local_norms=[math.nan, math.nan]),
        row(2, 2, grad_norm=math.nan, local_norms=[math.nan, math.nan]),
        row(3, 3, grad_norm=1.0, local_norms=[1.0, 2.0]),
    )
    assert run.ranks.attempts.tolist() == [2, 3]


def test_an_outcome_belongs_to_the_latest_incident_of_its_number():
    outcome = {"type": "outcome", "incident": 1, "outcome": "recovered", "steps": 5}
    stray = {**outcome, "incident": 7}
    (first, second), _ = join_outcomes([stray, rollback_incident(1), rollback_incident(1), outcome])
    assert first.outcome is None
    assert second.outcome is not None
    assert second.outcome.steps == 5


def test_a_running_job_counts_a_dropped_micro_batch_as_its_guard_does(tmp_path):
    """Its batch was applied with verdict ok: the rows show it, and of older rows only the journal."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(model, optimizer, journal=tmp_path / "incidents.jsonl")
    reports = []
    for bad in (1.0, math.nan):
        optimizer.zero_grad()
        for factor in (1.0, bad, 1.0, 1.0):
            guard.backward(model(torch.ones(2, 4)).mean() * factor, weight=0.25)
        reports.append(guard.step())
    for rows in ([r.to_row() for r in reports], [row(r.attempt, r.step) for r in reports]):
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        summary = summarize(run_of(tmp_path, *rows))
        assert (summary.anomalies, summary.incidents) == (1, guard.totals.incidents) == (1, 1)


def test_an_exclusion_of_ranks_that_lasts_is_one_incident_and_many_anomalies(tmp_path):
    write_rows(tmp_path / "incidents.jsonl", [{**nan_incident(1), "attempt": 2, "excluded_ranks": [1]}])
    excluded = [row(i, i, excluded_ranks=[1]) for i in range(2, 7)]
    summary = summarize(run_of(tmp_path, row(1, 1), *excluded))
    assert (summary.anomalies, summary.incidents) == (5, 1)


def test_figures_without_a_result_are_counted_from_the_rows(tmp_path):
    job = write_job(tmp_path / "job")
    (job / "result.json").unlink()
    (job / "incidents.jsonl").unlink()
    summary = summarize(read_run(job))
    assert summary.status == "unfinished"
    assert (summary.steps, summary.skips, summary.rollbacks, summary.anomalies) == (240, 1, 1, 4)
    assert summary.steps_lost == BOOM_AT + 1 - TARGET
    assert summary.metrics == {"test_accuracy": 0.881, "test_loss": 0.336}
    assert summary.guard_share == pytest.approx(0.0025 / 0.21)
    assert summary.seconds == pytest.approx(0.21 * (240 + 1 + 27 - 1), abs=0.3)


@pytest.mark.parametrize("zeros", [{}, {"attempts": 0, "anomalies": 0, "skips": 0, "rollbacks": 0}])
def test_what_a_short_result_lacks_is_counted_from_the_rows(tmp_path, zeros):
    job = write_job(tmp_path / "job")
    short = {"status": "stopped", "steps": 200, **zeros}
    write_json_atomic(job / "result.json", short)
    summary = summarize(read_run(job))
    assert (summary.status, summary.steps) == ("stopped", 200)
    assert (summary.skips, summary.rollbacks, summary.anomalies) == (1, 1, 4)


def test_the_result_of_a_job_that_was_killed_has_the_figures_of_its_rows(tmp_path):
    job = write_job(tmp_path / "job")
    outcome = {"status": "failed", "job": "job", "error": "a worker died", **figures_of_rows(job)}
    result = complete(outcome, JobSpec.from_dict({"name": "job"}), 12.0, "gradguard train job.yaml")
    assert (result["status"], result["steps"], result["seconds"]) == ("failed", 240, 12.0)
    assert (result["skips"], result["rollbacks"], result["anomalies"], result["incidents"]) == (1, 1, 4, 2)
    assert result["attempts"] > result["steps"]
    assert result["steps_lost"] == BOOM_AT + 1 - TARGET
    assert result["metrics"] == {"test_accuracy": 0.881, "test_loss": 0.336}
    assert 0 < result["guard_share"] < 1
    json.dumps(result, allow_nan=False)


def test_a_job_that_wrote_no_rows_has_no_figures(tmp_path):
    assert figures_of_rows(tmp_path) == {}


def test_the_nan_row_is_in_the_series_at_its_attempt(tmp_path):
    run = read_run(write_job(tmp_path / "job"))
    assert run.steps.attempt[run.steps.loss_nonfinite].tolist() == [NAN_AT]
    assert run.steps.attempt[run.steps.skipped].tolist() == [NAN_AT]


@pytest.mark.parametrize("spec", ["", "a: [1", "- 1", "when: 2020-99-99", "\x00", "name: nan"])
def test_a_spec_that_cannot_be_read_costs_only_the_setup_line(tmp_path, spec):
    (tmp_path / "spec.yaml").write_text(spec)
    run = read_run(tmp_path)
    assert run.spec_text == spec
    assert run.name in {tmp_path.name, "nan"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "The run finished 240 steps in 3 min 1 s and reached a test accuracy of 88.1 %."),
        ({"metrics": {}, "seconds": None}, "The run finished 240 steps."),
        (
            {"metrics": {"test_loss": 0.5}},
            "The run finished 240 steps in 3 min 1 s and reached a test loss of 0.5.",
        ),
        ({"status": "failed"}, "The run failed after 240 steps in 3 min 1 s."),
        ({"status": "stopped", "steps": 1}, "The run was stopped after 1 step in 3 min 1 s."),
        (
            {"status": "halted", "seconds": None},
            "The guard halted the run after 240 steps: it kept failing faster than it could be repaired.",
        ),
        (
            {"status": "unfinished", "steps": None},
            "The run is still going, or it was killed: there is no result yet.",
        ),
    ],
)
def test_every_status_has_its_headline(fields, sentence):
    assert headline(Summary.from_row({**result("job", 240), **fields})) == sentence


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "The guard stepped in: 1 skip and 1 rollback; 26 steps were lost."),
        ({"rollbacks": 0, "steps_lost": 0}, "The guard stepped in: 1 skip."),
        (
            {"skips": 0, "rollbacks": 0, "anomalies": 2},
            "The guard saw 2 anomalies and had to repair nothing.",
        ),
        ({"skips": 0, "rollbacks": 0, "anomalies": 0}, ""),
    ],
)
def test_the_work_of_the_guard_is_a_sentence(fields, sentence):
    assert guard_words(Summary.from_row({**result("job", 240), **fields})) == sentence


def test_a_result_of_wrong_types_is_read_as_far_as_it_goes(tmp_path):
    write_json_atomic(tmp_path / "result.json", {key: ["wrong"] for key in result("x", 1)})
    summary = summarize(read_run(tmp_path))
    assert summary.steps is None
    assert summary.metrics == {}
