"""Bad input is one clear line and exit code 2; nothing starts, nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.harness.runner import GRADGUARD, Sandbox

pytestmark = pytest.mark.slow


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.yaml",), "nowhere.yaml"),
        (("digits.yaml", "--set", "guard.clip.max_nrom=1"), "max_norm"),
        (("digits.yaml", "--set", "optimizer.lr=-1"), "optimizer.lr"),
        (("digits.yaml", "--set", "data.root=/nowhere", "--set", "data.dataset=fashion-mnist"), "/nowhere"),
        (("digits.yaml", "--set", "workload=nothing.here:Model"), "nothing"),
        (("digits.yaml", "--address", "http://127.0.0.1:9"), "ray job submit"),
    ],
)
def test_one_line_and_exit_code_2(sandbox: Sandbox, arguments: tuple[str, ...], said: str) -> None:
    sandbox.spec()
    run = sandbox.run(GRADGUARD, "train", *arguments)
    assert run.returncode == 2, run.stdout
    assert said in run.stdout
    assert "Traceback" not in run.stdout


def test_check_reports_that_a_good_spec_is_valid(sandbox: Sandbox) -> None:
    run = sandbox.run(GRADGUARD, "check", sandbox.spec())
    assert run.returncode == 0, run.stdout
    assert "digits.yaml is valid" in run.stdout


def test_a_storage_that_cannot_be_written_is_named(sandbox: Sandbox) -> None:
    (sandbox.path / "file").write_text("")
    run = sandbox.run(GRADGUARD, "train", sandbox.spec(), "--set", "storage=file")
    assert run.returncode == 2
    assert "file" in run.stdout
    assert "Traceback" not in run.stdout
