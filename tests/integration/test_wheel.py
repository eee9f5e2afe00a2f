"""The wheel, in an environment without the checkout: complete, without tests or generators, and it trains."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs.cluster.session import PACKAGE_ROOT as ROOT
from tests.integration.deaths.test_full_disk import ISOLATED, can_mount
from tests.integration.harness.runner import BIN, SMALL, Sandbox

pytestmark = pytest.mark.slow

PACKAGES = ("guard", "jobs", "service")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
NOT_AT_RUN_TIME = {".md", ".pyc", ".ipynb"}


def call(*command: str | Path, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy with tests and all, since a build leaves files in its source folder."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "tests", "deploy"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    call(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A sandbox whose Python has the wheel and the packages it depends on, and not the checkout."""
    venv = tmp_path_factory.mktemp("venv")
    call(sys.executable, "-m", "venv", "--without-pip", venv)
    call(*PIP, "--python", venv, "install", "--no-deps", "--no-index", wheel)
    (site,) = venv.glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "dependencies.pth").write_text("\n".join(dependencies))  # after the wheel: it comes first
    sandbox = Sandbox(tmp_path_factory.mktemp("empty"))
    del sandbox.environment["PATH"]
    sandbox.environment.pop("PYTHONPATH", None)
    others = [path for path in os.environ["PATH"].split(os.pathsep) if Path(path) != BIN]
    sandbox.environment["PATH"] = os.pathsep.join([str(venv / "bin"), *others])
    return sandbox


def modules(wheel: Path) -> Iterator[tuple[str, ast.Module]]:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                yield name, ast.parse(archive.read(name))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def test_the_wheel_contains_every_file_that_the_packages_read(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    read = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in NOT_AT_RUN_TIME and "dashboards" not in path.parts
    }
    pictures_of_readmes = {path for path in read if path.endswith(".svg") and "/page/" not in path}
    assert read - pictures_of_readmes <= names
    for pattern in (r"jobs/report/.*\.j2", r"service/page/static/.*\.js", r"jobs/examples/.*\.yaml"):
        assert any(re.fullmatch(pattern, name) for name in names), pattern
    assert {"guard/py.typed", "jobs/py.typed", "service/store/migrations/env.py"} <= names


def test_the_wheel_contains_neither_tests_nor_what_only_developers_can_run(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    developers = {re.split(r"[\[><=!]", requirement)[0].lower() for requirement in extras["dev"]} - {
        "gradguard"
    }
    found = importlib.metadata.packages_distributions().items()
    theirs = {name for name, owners in found if developers & {owner.lower() for owner in owners}}
    assert {"pytest", "griffe"} <= theirs
    assert {name: used for name, tree in modules(wheel) if (used := theirs & {*imported(tree)})} == {}


def test_the_installed_command_comes_from_the_wheel_and_knows_its_version(installed: Sandbox) -> None:
    program = "import guard, jobs, service; print(guard.__file__, jobs.__file__, service.__file__)"
    places = installed.run("python", "-c", program).stdout.split()
    assert not any(Path(place).is_relative_to(ROOT) for place in places), places
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert installed.run("gradguard", "--version").stdout.startswith(f"gradguard {version} (torch ")


def test_the_installed_command_trains_reports_and_makes_its_database(installed: Sandbox) -> None:
    short = {"train": {"max_steps": 4, "checkpoint_every_steps": 2}, "scale": {"workers": 1}}
    run = installed.run("gradguard", "train", installed.spec("tiny", model=SMALL, **short))
    assert run.returncode == 0, run.stdout
    assert installed.result("tiny")["steps"] == 4
    assert "<svg" in (installed.path / "runs" / "tiny" / "report.html").read_text()
    made = installed.run("gradguard", "tokens", "create", "anna", "--json")
    assert json.loads(made.stdout)["name"] == "anna"


AS_IN_THE_POD = """
cd {home} && mount --bind runs runs && mount --bind {temporary} {temporary} &&
mount -o remount,ro,bind / && cd specs &&
exec unshare --user --map-user={user} --map-group={group} -- env -i {variables} {entrypoint}
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A temporary folder whose name leaves room for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="gg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.soak
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a file system")
def test_the_entrypoint_of_the_rayjob_trains_as_the_user_of_the_manifests_on_a_read_only_root(
    installed: Sandbox, tmp_path: Path, short: Path
) -> None:
    """Only the volume and the temporary folder can be written, and no variable is set."""
    config, job = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "rayjob.yaml").read_text())
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    spec = yaml.safe_load(config["data"]["fashion.yaml"].replace("/home/gradguard", str(tmp_path)))
    for name in ("specs", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "specs" / "fashion.yaml").write_text(yaml.safe_dump({**spec, "train": {"max_steps": 3}}))
    path = installed.environment["PATH"]
    command = AS_IN_THE_POD.format(
        home=tmp_path,
        temporary=short,
        user=pod["runAsUser"],
        group=pod["runAsGroup"],
        variables=f"PATH={path} HOME={tmp_path} TMPDIR={short} MPLCONFIGDIR={short}/matplotlib",
        entrypoint=job["spec"]["entrypoint"].replace("/home/gradguard", str(tmp_path)),
    )
    run = subprocess.run([*ISOLATED, command], capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads((tmp_path / "runs" / spec["name"] / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("succeeded", 3)
    assert "Traceback" not in run.stdout + run.stderr
