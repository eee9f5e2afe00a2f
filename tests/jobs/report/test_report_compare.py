"""Two jobs side by side: figures, curves, specs and incidents, each where it belongs."""

import json

import pytest

from guard.rows import strict
from jobs.report.compare import Figure, compare, flat, write_comparison
from jobs.report.overlay import standing
from jobs.run_dir.jsonl import write_json_atomic
from tests.jobs.report.report_fixture import SPEC, result, write_job


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The second run: another rate, half the steps, a worse end, no incidents, a newer torch."""
    root = tmp_path_factory.mktemp("runs")
    first, second = write_job(root / "steady"), write_job(root / "hot", steps=120, name="hot")
    (second / "spec.yaml").write_text(
        SPEC.replace("lr: 0.1", "lr: 0.4").replace("name: fashion", "name: hot")
    )
    (second / "incidents.jsonl").unlink()
    changed = {"metrics": {"test_accuracy": 0.8}, "seconds": 90.6, "guard_share": None}
    versions = {"versions": {"torch": "2.14.0", "ray": "2.60.0"}}
    write_json_atomic(second / "result.json", result("hot", 120, **changed, **versions, skips=0))
    return first, second


@pytest.fixture(scope="module")
def comparison(pair):
    return compare(*pair)


def figure(comparison, key):
    (found,) = (figure for figure in comparison.figures if figure.key == key)
    return found


def test_figures_stand_side_by_side_with_their_difference(comparison):
    assert figure(comparison, "metrics.test_accuracy").texts == ("88.1 %", "80.0 %", "−8.1 %")
    assert figure(comparison, "steps").texts == ("240", "120", "−120")
    assert figure(comparison, "seconds").texts == ("3 min 1 s", "1 min 31 s", "−1 min 31 s")
    assert figure(comparison, "rollbacks").texts == ("1", "1", "±0")
    assert figure(comparison, "step_milliseconds").texts == ("210 ms", "210 ms", "±0 ms")


def test_what_one_run_lacks_is_no_difference(comparison):
    assert figure(comparison, "metrics.test_loss").difference is None
    assert Figure("x", "X", 1.0, 3.5, "").texts == ("1", "3.5", "+2.5")


def test_only_what_differs_in_the_specs_is_listed_under_the_name_that_set_takes(comparison):
    assert comparison.spec == {"name": ("fashion", "hot"), "optimizer.lr": ("0.1", "0.4")}
    assert comparison.versions["torch"] == ("2.13.0", "2.14.0")
    assert "ray" not in comparison.versions
    assert flat({"a": {"b": None, "c": {}}, "d": [1]}) == {"a.b": "null", "a.c": "{}", "d": "[1]"}


def test_the_curves_are_of_the_history_that_stands(comparison):
    run = comparison.runs[0]
    steps = run.steps.step[standing(run)]
    assert len(steps) == len(set(steps)) == 240


def test_the_page_needs_nothing_beside_it_and_names_both(comparison, tmp_path):
    html = write_comparison(comparison, tmp_path / "compare.html").read_text()
    assert "<script" not in html
    assert "https://" not in html
    for part in ("fashion", "hot", "optimizer.lr", "Loss spike at step 151", "No incidents."):
        assert part in html


def test_jobs_of_one_name_are_distinguished_by_their_folders(pair):
    assert compare(pair[0], pair[0]).names == (str(pair[0]), str(pair[0]))
    assert compare(*pair).names == ("fashion", "hot")


def test_everything_can_be_had_as_json(comparison):
    read = json.loads(json.dumps(strict(comparison.as_json()), allow_nan=False))
    assert read["figures"]["metrics.test_accuracy"]["difference"] == pytest.approx(-0.081)
    assert read["spec"]["optimizer.lr"] == ["0.1", "0.4"]
    assert (read["first"]["name"], read["second"]["incidents"]) == ("fashion", [])


def test_empty_folders_can_be_compared(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    html = write_comparison(compare(tmp_path / "a", tmp_path / "b"), tmp_path / "c.html").read_text()
    assert "No steps have been recorded yet." in html


def test_the_contents_of_both_runs_files_are_only_text(pair, tmp_path):
    hostile = "<script>alert(1)</script>"
    job = write_job(tmp_path / "job")
    (job / "spec.yaml").write_text(f"model: {{name: {hostile!r}}}")
    write_json_atomic(job / "result.json", result(hostile, 1, versions={hostile: hostile}, status=hostile))
    html = write_comparison(compare(pair[0], job), tmp_path / "c.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
