"""The tables and pictures of the benchmarks say what was measured, and the README says the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from render import README, RESULTS, render, rendered_readme, survival_summary

SUITE = str(Path(__file__).with_name("suite.py"))
MACHINE = {"device": "a CPU", "cores": 2, "python": "3.11", "torch": "2.13", "ray": "2.60", "commit": "abc"}


def row(case: str, method: str, survived: int, ratio: float | None, lost: float = 0.0) -> dict[str, Any]:
    """Of two seeds."""
    near = survived if ratio is not None and ratio <= 1.01 else 0
    return {
        **{"task": "resnet", "case": case, "method": method, "seeds": 2, "survived": survived},
        **{"within 1 %": near, "to the bit": 0, "loss / clean": ratio, "steps lost": lost, "seconds": 1.0},
    }


def parts(*rows: dict[str, Any]) -> dict[str, Any]:
    """A benchmark that has measured survival alone."""
    part = {"command": "python x.py", "quick": False, "seconds": 1.0, "machine": MACHINE}
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
    assert "| **GradGuard** | 3 of 4 | 2 of 4 | 1 of 2 | 3 |" in text


def test_where_another_method_is_better_the_table_says_so() -> None:
    ours, theirs = row("drift", "GradGuard", 1, 1.2), row("drift", "ZClip", 2, 1.1)
    text = survival_summary(parts(ours, theirs))
    assert "- ResNet, drift: GradGuard 1 of 2, 1.20; ZClip 2 of 2, 1.10" in text
    text = survival_summary(parts(row("drift", "GradGuard", 2, 1.0), theirs))
    assert "No other method" in text


def test_each_block_of_the_readme_is_drawn_from_the_results() -> None:
    before = "x\n<!-- bench: survival -->\nold\n<!-- end of bench -->\ny\n"
    text = rendered_readme(before, parts(row("a", "GradGuard", 2, 1.0)))
    assert "old" not in text
    assert "**GradGuard**" in text
    assert text.startswith("x\n<!-- bench: survival -->\n")
    assert text.endswith("<!-- end of bench -->\ny\n")


def test_the_readme_is_what_the_kept_results_say() -> None:
    text = README.read_text()
    assert rendered_readme(text, json.loads(RESULTS.read_text())["parts"]) == text


@pytest.mark.slow
def test_a_part_is_run_and_kept_beside_those_that_were_there(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    out.write_text(json.dumps({"parts": parts(row("a", "GradGuard", 2, 1.0))}))
    done = run("--quick", "--only", "gpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    kept = json.loads(out.read_text())["parts"]
    assert set(kept) == {"survival", "gpu"}
    assert {"device", "commit", "torch"} <= kept["gpu"]["machine"].keys()


@pytest.mark.parametrize("out", ["bench.txt", "nowhere/bench.json"])
def test_a_bad_place_for_the_results_is_told_before_anything_is_measured(tmp_path: Path, out: str) -> None:
    done = run("--out", str(tmp_path / out))
    assert done.returncode == 2
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SUITE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
