"""The house: which folders there are, what an import loads, and how long a file may be.

The layers, the rooms and the absence of circles are contracts in pyproject.toml, proven by ``make lint``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import repository_files

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("guard", "jobs", "service")
FOLDERS = {*LAYERS, "deploy", "tests"}
GUARD_MAY_IMPORT = {"torch", "numpy", "pydantic", "pydantic_core", "prometheus_client"}
OPTIONAL = {
    "guard/logs/event_files.py": "tensorboard",
    "guard/logs/packed.py": "pyarrow",
    "guard/trackers/mlflow_run.py": "mlflow",
}
LONGEST_FILE = 400


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> Iterator[str]:
    """The top-level package of every import in a file, wherever in it, also under ``TYPE_CHECKING``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0] if node.level == 0 else path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", sources("guard"), ids=name_of)
def test_the_guard_needs_no_more_than_torch_and_three_small_packages(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "guard", *GUARD_MAY_IMPORT}
    if path.parent.name == "integrations":
        allowed |= {path.stem}  # the optional package that it is made for
    allowed |= {OPTIONAL[name] for name in OPTIONAL if name_of(path) == name}
    assert set(imported(path)) <= allowed


def loaded_by(module: str) -> set[str]:
    """The packages in memory after a module alone was imported."""
    program = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_guard_does_not_import_ray_or_the_other_layers() -> None:
    others = {"ray", "lightning", "transformers", "torchvision", "jobs", "service", "typer"}
    assert not others & loaded_by("guard")


def test_a_command_that_trains_nothing_does_not_wait_for_torch_or_ray() -> None:
    assert not {"torch", "ray", "pandas", "matplotlib", "fastapi", "sqlalchemy"} & loaded_by("service.cli")


def test_the_house_has_only_its_five_folders() -> None:
    files = repository_files()
    if not files:
        pytest.skip("not a git checkout")
    folders = {file.split("/")[0] for file in files if "/" in file}
    assert {folder for folder in folders if not folder.startswith(".")} <= FOLDERS


def test_there_is_no_python_in_deploy() -> None:
    assert not sources("deploy")


@pytest.mark.parametrize("path", sources(*LAYERS, "tests"), ids=name_of)
def test_no_file_holds_two_concepts(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


FULLEST_FOLDER = 24


def test_no_folder_is_a_heap() -> None:
    files = Counter(path.parent for path in sources(*LAYERS, "tests"))
    assert {name_of(folder): many for folder, many in files.items() if many > FULLEST_FOLDER} == {}
