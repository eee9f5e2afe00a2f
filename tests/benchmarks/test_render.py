"""The tables and pictures of the benchmarks show what was measured, and the README shows the same."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_rates import OURS, SENSITIVITY
from early_warning.bench_warnings import ACTED, ANNOUNCED
from pictures import explosion_picture
from render import BLOCKS, PICTURES, README, RESULTS, gpu_parts, kept_results, render, rendered_readme
from rich.console import Console
from suite import followed
from survival_tables import DETAIL, survival_summary, witness_summary

SUITE = str(Path(__file__).with_name("suite.py"))
TITLES = {
    "rates": [SENSITIVITY, OURS],
    "early warning": [ANNOUNCED, ACTED],
    "samples": ["one bad sample in a batch of 64"],
}
"""Of a part, the tables that do not depend on what is trained."""
MACHINE = {"device": "a CPU", "cores": 2, "python": "3.11", "torch": "2.13", "ray": "2.60", "commit": "abc"}


def row(
    case: str, method: str, survived: int, ratio: float | None, lost: float = 0.0, cost: float = 1.0
) -> dict[str, Any]:
    """Of two seeds."""
    near = survived if ratio is not None and ratio <= 1.01 else 0
    return {
        **{"task": "resnet", "case": case, "method": method, "seeds": 2, "survived": survived},
        **{"within 1 %": near, "to the bit": 0, "loss / clean": ratio, "steps lost": lost, "ms a step": cost},
    }


def parts(*rows: dict[str, Any]) -> dict[str, Any]:
    """A benchmark that has measured survival alone."""
    part = {"command": "python x.py", "quick": False, "seconds": 1.0, "machine": MACHINE, "seeds": [0, 1]}
    return {"survival": {**part, "tables": {"resnet": list(rows)}}}


def test_a_lost_run_is_shown_as_lost_and_not_as_a_number(tmp_path: Path) -> None:
    found = parts(row("clean", "clip 1.0", 2, 1.0), row("NaN", "clip 1.0", 0, None))
    text = render({"parts": found}, tmp_path / "bench.json")
    assert "| NaN | 0 of 2, lost |" in text
    assert (tmp_path / "bench.md").read_text() == text
    assert "NaN" in (tmp_path / "bench-survival.svg").read_text()


def test_the_summary_counts_the_faults_and_leaves_the_clean_run_out() -> None:
    rows = [row("clean", "GradGuard", 2, 1.0), row("a", "GradGuard", 2, 1.005, 4.0)]
    text = survival_summary(parts(*rows, row("b", "GradGuard", 1, 1.3, 2.0)))
    assert "| **GradGuard** | 3 of 4 | 2 of 4 | 3 | 1 |" in text


def test_the_cost_of_a_method_is_relative_to_the_same_run_without_one() -> None:
    rows = [row("a", "no guard", 0, None, cost=10.0), row("a", "GradGuard", 2, 1.0, cost=11.0)]
    assert "| 2 of 2 | 2 of 2 | 0 | 1.1 |" in survival_summary(parts(*rows))


def test_the_diagnosis_counts_only_what_has_a_right_answer() -> None:
    asked = {"task": "resnet", "method": "GradGuard", "seeds": 2, "halted": 0}
    clean = {"case": "clean", "incidents": 0.5, "most steps repeated": 0}
    fault = {"case": "NaN", "incidents": 1.0, "most steps repeated": 20}
    nothing = {"step named": "", "kind named": "", "rank named": "", "layer named": ""}
    named = {"step named": "1/2", "kind named": "2/2", "rank named": "2/2", "layer named": ""}
    found = parts()
    found["survival"]["tables"][DETAIL] = [{**asked, **clean, **nothing}, {**asked, **fault, **named}]
    header, _, answers = witness_summary(found["survival"]["tables"][DETAIL]).splitlines()
    shown = dict(zip(header.split(" | "), answers.split(" | "), strict=True))
    assert shown["| step"] == "| 1 of 2"
    assert shown["layer"] == "0 of 0"
    assert shown["incidents on clean runs"] == "1 in 2"
    assert shown["steps repeated by one rollback |"] == "at most 20 |"


def test_where_another_method_is_better_the_tables_show_it(tmp_path: Path) -> None:
    ours, theirs = row("drift", "GradGuard", 1, 1.2), row("drift", "ZClip", 2, 1.1)
    full = render({"parts": parts(ours, theirs)}, tmp_path / "bench.json")
    assert "- ResNet, drift: GradGuard 1 of 2, 1.20; ZClip 2 of 2, 1.10" in full
    assert survival_summary(parts(ours, theirs)).endswith(
        "- GradGuard loses runs to: drift (ResNet 1 of 2).\n"
        "- Another method ends more than 1 % better on: drift (ResNet).\n"
    )
    best = parts(row("drift", "GradGuard", 2, 1.0), theirs)
    assert "No other method" in render({"parts": best}, tmp_path / "bench.json")
    assert survival_summary(best).endswith("more than 1 % better on: none.\n")


def test_the_readme_shows_every_block_that_is_drawn_for_it_and_no_other() -> None:
    assert re.findall(r"<!-- bench: ([a-z ]+) -->", README.read_text()) == list(BLOCKS)


def test_the_picture_of_the_example_marks_each_fault_and_what_the_guard_did(tmp_path: Path) -> None:
    losses = [2.0, 1.0, math.nan, 1.0, 1.0, 50.0, 1.0]
    steps = [1, 2, 2, 3, 4, 3, 4]
    guarded = [
        {"attempt": i, "step": step, "loss": loss, "action": "applied", "rolled_back_to": None}
        for i, (step, loss) in enumerate(zip(steps, losses, strict=True), start=1)
    ]
    guarded[2]["action"] = "skipped"
    guarded[5].update(action="rolled_back", rolled_back_to=3)
    bare = [{**row, "action": "applied"} for row in guarded[:3]]
    runs = {"with the guard": guarded, "without": bare}
    explosion_picture(runs, ["NaN loss", "learning rate x 3,000"], tmp_path / "explosion.svg")
    drawn = re.findall(r"<!-- (.*?) -->", (tmp_path / "explosion.svg").read_text())
    text = " ".join(drawn)
    for label in ("NaN loss", "step skipped", "learning rate x 3,000", "rolled back to step 3", "run lost"):
        assert label in text


def test_each_block_of_the_readme_is_drawn_from_the_results() -> None:
    before = "x\n<!-- bench: survival -->\nold\n<!-- end of bench -->\ny\n"
    text = rendered_readme(before, parts(row("a", "GradGuard", 2, 1.0)))
    assert "old" not in text
    assert "**GradGuard**" in text
    assert text.startswith("x\n<!-- bench: survival -->\n")
    assert text.endswith("<!-- end of bench -->\ny\n")


def test_every_picture_is_drawn_from_the_kept_results(tmp_path: Path) -> None:
    kept = kept_results()
    text = render(kept, tmp_path / "bench.json")
    assert text == RESULTS.with_suffix(".md").read_text()
    assert {path.name for path in tmp_path.glob("*.svg")} == {f"bench-{name}.svg" for name in PICTURES}


def test_the_readme_shows_a_gpu_by_its_name_once_there_is_a_result_and_never_a_rehearsal() -> None:
    row = {"model": "resnet50", "method": "exact", "step ms": 10.0, "to no guard": 1.01}
    row |= {"host waits a step": 1.0, "launches a step": 900.0}
    session = {"machine": {**MACHINE, "device": "Some GPU", "torch": "2.13.0+cu130"}, "rehearsal": False}
    session["parts"] = {"counts": {"tables": {}}, "whole steps": {"tables": {"steps": [row]}}}
    before = "<!-- bench: gpu -->\nold\n<!-- end of bench -->\n"
    parts = gpu_parts(session)
    assert list(parts) == ["gpu", "gpu, counts"]
    text = rendered_readme(before, parts)
    assert "On Some GPU" in text
    assert "| resnet50 | exact | 1.01 |" in text
    assert gpu_parts({**session, "rehearsal": True}) == {}
    nothing = {"gpu": {"machine": MACHINE, "tables": {"steps": [{"model": "x", "step ms": "not measured"}]}}}
    assert "Nothing has been measured on a GPU yet" in rendered_readme(before, nothing)


def test_the_readme_shows_the_kept_results() -> None:
    text = README.read_text()
    assert rendered_readme(text, kept_results()["parts"]) == text


@pytest.mark.slow
def test_a_part_is_run_and_kept_beside_those_that_were_there(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    out.write_text(json.dumps({"parts": parts(row("a", "GradGuard", 2, 1.0))}))
    done = run("--quick", "--only", "gpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    kept = json.loads(out.read_text())["parts"]
    assert set(kept) == {"survival", "gpu"}
    assert {"device", "commit", "torch"} <= kept["gpu"]["machine"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["rates", "early warning", "samples"])
def test_the_quick_form_of_a_part_fills_its_tables(tmp_path: Path, part: str) -> None:
    out = tmp_path / "bench.json"
    done = run("--quick", "--only", part, "--out", str(out))
    assert done.returncode == 0, done.stderr
    tables = json.loads(out.read_text())["parts"][part]["tables"]
    assert all(tables[title] for title in TITLES[part])


def test_progress_is_passed_on_and_the_last_words_of_a_failure_are_kept() -> None:
    shown = Console(file=io.StringIO())
    script = "import sys; from measure import progress; progress('one of two'); print('broken'); sys.exit(3)"
    environment = {**os.environ, "PYTHONPATH": str(Path(SUITE).parent)}
    code, said = followed([sys.executable, "-c", script], environment, shown)
    assert (code, said) == (3, ["broken\n"])
    assert isinstance(shown.file, io.StringIO)
    assert shown.file.getvalue() == "    one of two\n"


@pytest.mark.parametrize("out", ["bench.txt", "nowhere/bench.json"])
def test_a_path_that_cannot_hold_the_results_is_refused_before_anything_is_measured(
    tmp_path: Path, out: str
) -> None:
    done = run("--out", str(tmp_path / out))
    assert done.returncode == 2
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_logs_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    done = run("--traces", str(tmp_path), "--out", str(tmp_path / "bench.json"))
    assert done.returncode == 2
    assert f"--traces: {tmp_path} has no index.csv and no labels.csv" in done.stderr
    assert not (tmp_path / "bench.json").exists()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SUITE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
