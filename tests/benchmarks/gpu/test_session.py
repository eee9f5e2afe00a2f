"""The session on a GPU runs through, whatever fails in it; rehearsed on the CPU with small sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from typing import Any

import gpu_session
import pytest

from gpu import machine_needs
from gpu.cuda_counts import _is_wait
from gpu.measurements import comm_hook, graph_capture, host_snapshot, skip_and_rollback

ABSENT = ("ray", "yaml", "sklearn", "typer", "jinja2", "safetensors", "pyarrow", "matplotlib", "httpx")
"""What a bare machine lacks, beside pydantic, which travels as a wheel."""


@pytest.mark.slow
def test_it_runs_through_without_ray(tmp_path: Path) -> None:
    block = f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(block)
    out = tmp_path / "gpu.json"
    arguments = ("--device", "cpu", "--rounds", "1", "--json", str(out))
    done = subprocess.run(
        [sys.executable, gpu_session.__file__, *arguments],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["rehearsal"]
    assert found["machine"]["device"]
    assert list(found["parts"]) == list(gpu_session.PARTS)
    assert all(part["tables"] for part in found["parts"].values())
    assert {row["outcome"] for row in found["parts"]["tests"]["tables"]["tests"]} == {"skipped"}


def test_what_fails_or_hangs_or_has_no_time_left_is_named() -> None:
    environment = dict(os.environ)
    fails, hangs = "print('broken'); raise SystemExit(3)", "import time; time.sleep(60)"
    assert gpu_session._ended([sys.executable, "-c", fails], environment, 60) == ("ended with 3", "broken\n")
    error, _ = gpu_session._ended([sys.executable, "-c", hangs], environment, 0.5)
    assert error == "ended after its limit of 0.5 s"
    assert gpu_session._ended([sys.executable, "-c", hangs], environment, -1.0) == ("no time was left", "")


def test_each_missing_package_is_named_in_one_line_and_a_wheel_of_it_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {"torch": "torch", "brought_along": "brought-along", "pydantic_nowhere": "pydantic"}
    monkeypatch.setattr(machine_needs, "DISTRIBUTIONS", needed)
    brought, pydantic = machine_needs.missing(tmp_path)
    assert brought.startswith("brought-along is missing")
    assert "pydantic==2." in pydantic
    with zipfile.ZipFile(tmp_path / "brought_along-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought_along/__init__.py", "")
    machine_needs.unpack(tmp_path, tmp_path / "unpacked")
    monkeypatch.syspath_prepend(tmp_path / "unpacked")
    assert machine_needs.missing(tmp_path) == [pydantic]
    (tmp_path / "unpacked" / "brought_along" / "__init__.py").write_text("import brought_along.compiled")
    monkeypatch.delitem(sys.modules, "brought_along")
    assert machine_needs.missing(tmp_path)[0].startswith("brought-along cannot be imported by Python 3.")


@pytest.mark.parametrize(
    ("measure", "right"),
    [
        (graph_capture, {"skipped": 1, "moved after": True}),
        (skip_and_rollback, {"weights finite": True}),
        (host_snapshot, {"copies to the bit": "3 of 3"}),
    ],
)
def test_the_rehearsal_ends_where_a_gpu_must(measure: Any, right: dict[str, Any]) -> None:
    for row in measure("cpu"):
        assert row.items() >= right.items()


def test_the_communication_hook_measures_the_norm_of_the_gradients() -> None:
    (row,) = comm_hook("cpu")
    assert row["largest relative difference"] < 1e-5


@pytest.mark.parametrize(("tag", "outcome"), [("failure", "failure"), ("skipped", "skipped"), ("", "passed")])
def test_the_outcome_of_each_test_is_kept(tag: str, outcome: str) -> None:
    case = ET.fromstring(f'<testcase name="one">{f"<{tag}/>" if tag else ""}</testcase>')
    assert gpu_session._outcome(case) == {"test": "one", "outcome": outcome}


def test_the_notice_of_torch_that_its_debug_mode_is_a_prototype_is_no_wait() -> None:
    notice = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing"
    assert not _is_wait(f"{notice} operations")
    assert _is_wait("called a synchronizing CUDA operation")
