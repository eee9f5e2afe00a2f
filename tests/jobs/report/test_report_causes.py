"""What the report derives: which layer grew first, where the time went, which checkpoints there are."""

import math

import numpy as np
import pytest

from guard import Incident
from jobs.checkpoints.manifest import Manifest
from jobs.report import words
from jobs.report.causes import with_first_layer
from jobs.report.cost import shares
from jobs.report.data import read_run
from jobs.report.page import context, render
from jobs.report.series import Matrix
from jobs.report.summary import summarize
from jobs.run_dir.storage import MANIFEST
from tests.jobs.report.report_fixture import (
    BOOM_AT,
    LAYERS,
    SPEC,
    TARGET,
    rollback_incident,
    write_job,
    write_rows,
)

INCIDENT = Incident.from_row(rollback_incident(1))
NAMES = ("conv1.weight", "layer4.1.conv2.weight", "fc.bias")


def layers(*last, attempts=()):
    """Quiet norms every second attempt, and then the given rows right before the incident at attempt 153."""
    random = np.random.default_rng(0)
    quiet = random.lognormal(0.0, 0.1, size=(40, 3)) * np.array([1.0, 0.2, 0.05])
    places = [*range(40, 120, 2), *(attempts or range(153 - len(last), 153))]
    rows = np.concatenate([quiet, np.array(last).reshape(-1, 3)])
    return Matrix(np.array(places, dtype=np.float64), NAMES, rows)


def first(*last, **where):
    return with_first_layer(INCIDENT, layers(*last, **where)).first_layer


def test_the_layer_that_grew_first_is_named_with_its_growth():
    found = first([1.0, 2.4, 0.05], [9.0, 80.0, 0.5])
    assert (found.name, found.attempts_before) == ("layer4.1.conv2.weight", 2)
    assert found.growth == pytest.approx(12, rel=0.1)


def test_ordinary_noise_blames_no_layer():
    assert first([1.2, 0.23, 0.06], [0.8, 0.19, 0.04]) is None


def test_a_layer_that_is_always_noisy_is_not_blamed_for_a_large_value():
    quiet = layers()
    wild = np.exp(np.random.default_rng(1).normal(0, 1.0, size=40))
    values = np.column_stack([quiet.values[:, 0], quiet.values[:, 1], wild])
    rows = np.concatenate([values, [[1.0, 0.2, 8.0]]])
    noisy = Matrix(np.append(quiet.attempts, 152.0), NAMES, rows)
    assert with_first_layer(INCIDENT, noisy).first_layer is None


def test_growth_long_before_the_incident_is_not_its_beginning():
    assert first([9.0, 9.0, 9.0], attempts=[124]) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_values_that_are_no_norms_are_ignored(value):
    found = first([value, 2.4, value], [value, value, value])
    assert found.name == "layer4.1.conv2.weight"


def test_without_history_no_layer_is_named():
    few = Matrix(np.array([100.0, 152.0]), NAMES, np.array([[1.0, 1.0, 1.0], [99.0, 1.0, 1.0]]))
    assert with_first_layer(INCIDENT, few).first_layer is None
    none = Matrix(np.array([]), (), np.empty((0, 0)))
    assert with_first_layer(INCIDENT, none).first_layer is None


def test_the_story_names_the_layer_that_grew_first_and_a_few_of_scattered_samples():
    incident = with_first_layer(INCIDENT, layers([1.0, 2.4, 0.05], [9.0, 80.0, 0.5]))
    story = " ".join(words.story(incident))
    assert "The gradient of layer4.1.conv2 grew first (12 times its baseline, 2 attempts before)." in story
    scattered = Incident.from_row({**rollback_incident(1), "samples": [9, 7, 5, 3, 1]})
    assert words.samples(scattered) == "The batch held samples 9, 7, 5 and 2 more."
    assert (
        words.samples(Incident.from_row({**rollback_incident(1), "samples": [7]}))
        == "The batch held sample 7."
    )
    assert words.samples(Incident.from_row({**rollback_incident(1), "samples": []})) == ""


def test_the_page_of_a_run_names_the_layer(tmp_path):
    job = write_job(tmp_path / "job")
    (incident,) = (i for i in read_run(job).incidents if i.rolled_back)
    assert incident.first_layer is not None
    assert "layer4.1" in incident.first_layer.name
    assert incident.first_layer.attempts_before <= 3


def test_the_parts_of_the_time_add_up_to_the_wall_clock(tmp_path):
    run = read_run(write_job(tmp_path / "job"))
    summary = summarize(run)
    parts = {part.name: part for part in shares(run, summary)}
    wall = [parts[name] for name in ("Steps that stand", "Rolled back", "Skipped", "Outside the steps")]
    assert sum(part.seconds for part in wall) == pytest.approx(summary.seconds)
    assert sum(part.share for part in wall) == pytest.approx(1.0)
    assert parts["Rolled back"].seconds == pytest.approx(0.21 * (BOOM_AT + 3 - TARGET - 1))
    assert parts["Skipped"].seconds == pytest.approx(0.21)
    assert parts["Guard, of the steps"].share == pytest.approx(0.0025 / 0.21)
    assert parts["Rollbacks"].time == "21 ms"


def test_an_attempt_that_two_rollbacks_undid_is_counted_once(tmp_path):
    steps, targets = [1, 2, 3, 4, 2, 3, 1, 2], {5: 2, 7: 1}
    write_rows(
        tmp_path / "metrics.jsonl",
        [
            {
                "attempt": i + 1,
                "step": step,
                "action": "applied",
                "step_seconds": 1.0,
                "rolled_back_to": targets.get(i + 1),
            }
            for i, step in enumerate(steps)
        ],
    )
    run = read_run(tmp_path)
    parts = {part.name: part.seconds for part in shares(run, summarize(run))}
    assert (parts["Rolled back"], parts["Steps that stand"]) == (6.0, 2.0)


def test_a_run_whose_steps_were_not_timed_has_no_such_section(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", [{"attempt": 1, "step": 1, "action": "applied", "loss": 1.0}])
    assert context(read_run(tmp_path))["cost"] is None


def manifest(step, attempt, health):
    return Manifest(
        format=1,
        step=step,
        attempt=attempt,
        health=health,
        created=1764072000.0 + attempt,
        world_size=2,
        files={"shard.safetensors": {"size": 90_000_000, "sha256": "0" * 64}},
        metrics={},
        versions={},
        spec={},
    )


@pytest.fixture
def job_with_checkpoints(tmp_path):
    job = write_job(tmp_path / "job")
    for step, attempt, health in ((100, 101, "good"), (200, 227, "good"), (240, 267, "candidate")):
        folder = job / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_bytes(manifest(step, attempt, health).render())
    return job


def test_checkpoints_are_on_a_timeline_and_in_a_table(job_with_checkpoints):
    run = read_run(job_with_checkpoints)
    assert [(c.step, c.attempt, c.fate) for c in run.checkpoints] == [
        (100, 101, "good"),
        (200, 227, "good"),
        (240, 267, "written"),
    ]
    shown = context(run)
    assert shown["checkpoint_rows"][0] == ("240", "candidate", "90 MB", "2025-11-25 12:04:27 UTC")
    assert shown["checkpoints"].count("var(--good)") > 0
    assert 'id="checkpoints"' in render(run)


def test_a_damaged_manifest_and_an_unreachable_store_cost_only_the_timeline(job_with_checkpoints):
    manifest_file = job_with_checkpoints / "checkpoints" / "step-00000100" / MANIFEST
    manifest_file.write_bytes(manifest_file.read_bytes()[:-20])
    assert [c.step for c in read_run(job_with_checkpoints).checkpoints] == [200, 240]
    spec = SPEC.replace("epochs: 2", "checkpoint_storage: 'nowhere://x/y', epochs: 2")
    (job_with_checkpoints / "spec.yaml").write_text(spec)
    assert len(read_run(job_with_checkpoints).steps) > 240


def test_checkpoints_that_are_gone_stay_on_the_timeline_with_the_reason(job_with_checkpoints):
    write_rows(
        job_with_checkpoints / "checkpoints.jsonl",
        [
            {"time": 1.0, "event": "written", "step": 50, "attempt": 50, "size": 9},
            {"time": 2.0, "event": "good", "step": 50},
            {"time": 3.0, "event": "retired", "step": 50},
            {"time": 4.0, "event": "written", "step": 150, "attempt": 151, "size": 9},
            {"time": 5.0, "event": "suspect", "step": 150},
            {"time": 6.0, "event": "written", "step": 240, "attempt": 200, "size": 9},
            {"time": 7.0, "event": "rolled_back", "step": 240},
            {"event": "unheard of", "step": 1},
            {"step": "text"},
        ],
    )
    run = read_run(job_with_checkpoints)
    assert [(c.step, c.fate) for c in run.checkpoints] == [
        (50, "retired"),
        (100, "good"),
        (150, "suspect"),
        (200, "good"),
        (240, "written"),
    ]
    shown = context(run)
    assert shown["checkpoint_words"] == "5 checkpoints were taken, 3 are there now."
    assert ("150", "removed: an anomaly followed it") in [row[:2] for row in shown["checkpoint_rows"]]
    assert render(run).count("newer ones took its place") == 1


def test_layers_of_the_fixture_are_those_of_the_story():
    assert {"layer4.1.conv2.weight", "fc.bias"} <= set(LAYERS)
