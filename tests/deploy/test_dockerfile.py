"""The Dockerfile, as far as that can be told without building it."""

import json
import re
import shlex
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
    copied = {source for copy in arguments(instructions, "COPY") for source in shlex.split(copy)[:-1]}
    assert {"guard", "jobs", "service", "pyproject.toml", "constraints.txt"} <= copied


def test_torch_is_installed_first_and_pinned_as_in_the_constraints(instructions: list[Instruction]) -> None:
    installs = [run for run in arguments(instructions, "RUN") if run.startswith("pip install")]
    pinned = dict(re.findall(r"\b(torch|torchvision)==([\d.]+)", installs[0]))
    constraints = (ROOT / "constraints.txt").read_text()
    wanted = dict(re.findall(r"^(torch|torchvision)==([\d.]+)", constraints, re.MULTILINE))
    assert pinned == wanted
    assert set(pinned) == {"torch", "torchvision"}
    assert "--constraint constraints.txt" in installs[1]
    assert len(installs) == 2


def test_it_runs_as_somebody_without_rights_under_an_init(instructions: list[Instruction]) -> None:
    names = [name for name, _ in instructions]
    user = arguments(instructions, "USER")[-1]
    assert user not in ("root", "0")
    assert any(f"useradd --create-home --uid 10001 {user}" in run for run in arguments(instructions, "RUN"))
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    assert json.loads(arguments(instructions, "ENTRYPOINT")[-1]) == ["tini", "--"]
    assert "tini" in arguments(instructions, "RUN")[0]


def test_the_port_of_the_hub_is_exposed(instructions: list[Instruction]) -> None:
    from jobs.hub import DEFAULT_PORT

    assert arguments(instructions, "EXPOSE") == [str(DEFAULT_PORT)]
