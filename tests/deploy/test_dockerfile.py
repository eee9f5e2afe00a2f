"""The Dockerfile, as far as it can be checked without building it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"

Instruction = tuple[str, str]


def parse(text: str) -> list[Instruction]:
    """The instructions in order, with continued lines joined and comments dropped."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(name.upper(), " ".join(rest.split())) for name, _, rest in pairs]


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    return parse(DOCKERFILE.read_text())


def arguments(instructions: list[Instruction], name: str) -> list[str]:
    return [rest for instruction, rest in instructions if instruction == name]


def test_continued_lines_and_comments_are_parsed() -> None:
    text = "FROM a\n# RUN x\nRUN one \\\n    && two\n\nuser me\n"
    assert parse(text) == [("FROM", "a"), ("RUN", "one && two"), ("USER", "me")]


def test_only_known_instructions_are_used(instructions: list[Instruction]) -> None:
    known = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert instructions[0] == ("FROM", "python:3.11-slim")
    assert {name for name, _ in instructions} <= known


def test_everything_that_is_copied_exists(instructions: list[Instruction]) -> None:
    for copy in arguments(instructions, "COPY"):
        *sources, _ = shlex.split(copy)
        assert [source for source in sources if not (ROOT / source).exists()] == []


def test_every_import_package_is_copied(instructions: list[Instruction]) -> None:
    copied = {
        source.removeprefix("./")
        for copy in arguments(instructions, "COPY")
        for source in shlex.split(copy)[:-1]
    }
    assert {"guard", "jobs", "service", "pyproject.toml", "constraints.txt"} <= copied


def test_torch_is_installed_first_and_pinned_as_in_the_constraints(instructions: list[Instruction]) -> None:
    installs = [run for run in arguments(instructions, "RUN") if "pip install" in run]
    pinned = dict(re.findall(r"\b(torch|torchvision)==([\d.]+)", installs[0]))
    constraints = (ROOT / "constraints.txt").read_text()
    wanted = dict(re.findall(r"^(torch|torchvision)==([\d.]+)", constraints, re.MULTILINE))
    assert pinned == wanted
    assert set(pinned) == {"torch", "torchvision"}
    assert "--constraint constraints.txt" in installs[1]
    assert len(installs) == 2


def test_it_runs_as_an_unprivileged_user_under_an_init(instructions: list[Instruction]) -> None:
    names = [name for name, _ in instructions]
    user = arguments(instructions, "USER")[-1]
    assert user == "10001"
    assert any(
        f"useradd --create-home --uid {user} gradguard" in run for run in arguments(instructions, "RUN")
    )
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    assert json.loads(arguments(instructions, "ENTRYPOINT")[-1]) == ["tini", "--"]
    assert "tini" in arguments(instructions, "RUN")[0]


def test_the_ports_of_service_and_hub_are_exposed(instructions: list[Instruction]) -> None:
    from jobs.observability.hub import DEFAULT_PORT

    assert arguments(instructions, "EXPOSE") == [f"8410 {DEFAULT_PORT}"]


@pytest.mark.parametrize(
    ("accelerator", "url", "index"),
    [
        ("cuda", "", ""),
        ("cpu", "", "--index-url https://download.pytorch.org/whl/cpu "),
        ("cu126", "", "--index-url https://download.pytorch.org/whl/cu126 "),
        ("cpu", "https://mirror.example/torch", "--index-url https://mirror.example/torch "),
    ],
)
def test_the_build_arguments_choose_the_index_of_torch(
    instructions: list[Instruction], accelerator: str, url: str, index: str
) -> None:
    (install,) = (run for run in arguments(instructions, "RUN") if "torch==" in run)
    arguments_ = {"ACCELERATOR": accelerator, "TORCH_INDEX_URL": url, "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["sh", "-euc", f'pip() {{ echo pip "$@"; }}; {install}'],
        env=arguments_,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"pip install {index}torch==")


def test_what_is_copied_is_all_that_is_sent_to_the_builder(instructions: list[Instruction]) -> None:
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split()
    copied = {source for copy in arguments(instructions, "COPY") for source in shlex.split(copy)[:-1]}
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied


def test_a_linter_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    # Debian's packages are as the base image is; pip's versions are in constraints.txt.
    ignored = ["--ignore", "DL3008", "--ignore", "DL3013", "--ignore", "DL3042"]
    done = subprocess.run([hadolint, *ignored, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
