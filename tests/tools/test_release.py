"""``make release``: what it refuses, and what it builds."""

from __future__ import annotations

import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.tools.release import ROOT, build, problems, try_wheel


def tree(folder: Path, version: str, changelog: str) -> Path:
    (folder / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
    (folder / "CHANGELOG.md").write_text(changelog)
    return folder


@pytest.mark.parametrize(
    ("version", "changelog", "lines"),
    [
        ("1.2.3", "## Unreleased\n\n## 1.2.3 - 2026-01-02\n- a\n", []),
        ("1.2.3", "## Unreleased\n- b\n## 1.2.3 - 2026-01-02\n", ["still under Unreleased"]),
        ("1.2.3", "## 1.2.2 - 2026-01-02\n", ["has no section '## 1.2.3'"]),
        ("1.2.3", "## 1.2.3\n", ["has no date"]),
        ("1.2.x", "## 1.2.x - 2026-01-02\n", ["is not as 1.2.3"]),
    ],
)
def test_a_release_is_refused_for_each_reason(
    tmp_path: Path, version: str, changelog: str, lines: list[str]
) -> None:
    found = problems(tree(tmp_path, version, changelog))
    assert len(found) == len(lines)
    assert all(line in problem for line, problem in zip(lines, found, strict=True))


@pytest.mark.slow
def test_the_archives_are_whole_and_the_wheel_runs_by_itself(tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    sdist, wheel = sorted(build(ROOT, tmp_path / "dist"), key=lambda path: path.suffix)
    try_wheel(wheel, version)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "guard/py.typed", "jobs/examples/fashion.yaml"} <= names
