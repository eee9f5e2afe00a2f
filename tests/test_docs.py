"""The documents are true: links lead somewhere, what they name exists, what they show runs as shown."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
import torch
import typer.main
from torch import nn
from typer.testing import CliRunner

import guard
from guard.config import _FIELDS_OF, ClipKind, GuardConfig
from guard.record.exposition import FAMILIES
from jobs.client.models import STATUSES
from jobs.errors import BAD_INPUT, BUSY, EXIT_CODES, INTERRUPTED
from jobs.observability.hub_server import HUB_FAMILIES
from jobs.spec.job_spec import JobSpec
from jobs.spec.schema import annotation_at, leaf_paths
from service.cli.app import app
from tests.documents import ROOT, Session, blocks, commands, documents, inline_code, links, name, prose
from tests.documents import anchors as anchors_of
from tests.integration.harness.runner import BIN, GRADGUARD, Sandbox, read_until
from tests.tools import reference, spec_reference
from tests.waiting import interrupt

GUARD, JOBS, SERVICE = (ROOT / folder / "README.md" for folder in ("guard", "jobs", "service"))
COMMAND: Any = typer.main.get_command(app)
OF_TORCH = {"optimizer.step"}
GENERATED = {"API.md", "SPEC.md", "CLI.md", "METRICS.md"}
WRITTEN = [path for path in documents() if path.name not in GENERATED]
FILES = re.compile(r"\.(jsonl|json|yaml|html|md|py|safetensors|log|svg|csv|png|txt)$")


def rows(path: Path, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    text = prose(path).split(f"{heading}\n", 1)[1]
    lines = [line for line in re.split(r"\n#", text)[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("path", documents(), ids=name)
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = [
        f"{target}#{anchor}"
        for target, anchor in links(path)
        if not target.exists() or (anchor and anchor not in anchors_of(target))
    ]
    assert broken == []


ROOMS = [
    path.parent
    for package in ("guard", "jobs", "service", "tests/tools")
    for path in sorted((ROOT / package).rglob("__init__.py"))
    if "migrations" not in path.parts
]


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_the_map_of_each_room_names_every_module(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    modules = {path.stem for path in room.glob("*.py") if not path.stem.startswith(("__", "test_"))}
    rooms = {path.parent.name for path in room.glob("*/__init__.py")}
    assert sorted((modules | rooms) - set(re.findall(r"``(\w+)``", text))) == []
    assert set(re.findall(r"^``(\w+)``: ", text, re.MULTILINE)) - {"static", "migrations"} <= modules | rooms


@pytest.mark.parametrize("room", [ROOT / "guard", ROOT / "jobs"], ids=name)
def test_the_readme_of_a_package_names_every_room(room: Path) -> None:
    table = rows(room / "README.md", f"# {'The guard' if room.name == 'guard' else 'Jobs'}")
    named = {code for row in table for code in codes(row[0])}
    assert {f"{path.parent.name}/" for path in room.glob("*/__init__.py")} <= named


def test_every_file_that_contributing_names_exists() -> None:
    named = {code for code in inline_code(ROOT / "CONTRIBUTING.md") if re.fullmatch(r"[\w./-]+", code)}
    paths = {code for code in named if "/" in code and (code.endswith("/") or "." in code.rpartition("/")[2])}
    assert len(paths) > 40
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_contributing_is_short_and_begins_with_its_glossary() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    assert len(lines) <= 200
    assert lines[2] == "## Glossary"


def test_what_is_generated_from_the_code_is_up_to_date() -> None:
    for path, text in reference.documents().items():
        assert path.read_text() == text, f"{path}: run python -m tests.tools.reference"


def test_the_reference_of_the_spec_has_every_field() -> None:
    text = spec_reference.document()
    for path in leaf_paths(JobSpec):
        assert f"| `{path.rpartition('.')[2]}` |" in text, path


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_every_command_can_be_given_as_it_is_written(path: Path) -> None:
    lines = [line for block in blocks(path) if block.language == "sh" for line in commands(block)]
    for line in lines:
        for before, call in re.findall(r"(^|.*\s)gradguard ([a-z]+(?: [^|;&]*)?)$", line):
            if not before or call.split()[0] in COMMAND.commands:  # else the name of an image or a namespace
                _parse(shlex.split(re.sub(r"[)(\"]", " ", call), comments=True))
    for code in inline_code(path):
        if code.startswith("gradguard ") and code != "gradguard serve --address":
            _look_up(shlex.split(code)[1:])


def _parse(words: list[str]) -> None:
    """Parses the words as the command would; raises where the command would refuse them."""
    command, rest = _find(words)
    command.make_context(words[0], rest)


def _look_up(words: list[str]) -> None:
    """A command that is only mentioned may lack its arguments."""
    command, rest = _find(words)
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    known |= {"--install-completion", "--show-completion", "--version"}
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, words


def _find(words: list[str]) -> tuple[Any, list[str]]:
    command = COMMAND
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    assert command is not COMMAND or words[:1] in ([], ["--install-completion"], ["--version"]), words
    return command, words


def _is_known(path: str) -> bool:
    """A field of the spec, of the guard's configuration, or a name that a program can import."""
    parts = path.split(".")
    as_field = any(annotation_at(model, parts) is not None for model in (JobSpec, GuardConfig))
    of_guard = parts[0] == "guard" and (
        hasattr(guard.GradientGuard, parts[1])
        or hasattr(guard, parts[1])
        or (ROOT / "guard" / parts[1]).is_dir()
        or (ROOT / "guard" / f"{parts[1]}.py").exists()
    )
    return as_field or of_guard


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_every_field_and_every_metric_that_is_named_exists(path: Path) -> None:
    sections = "|".join([*JobSpec.model_fields, *GuardConfig.model_fields])
    fields = [
        found[1]
        for code in inline_code(path)
        if (found := re.match(rf"(?:--set )?((?:{sections})(?:\.[a-z_0-9]+)+)(?![\w/-])", code))
    ]
    fields = [field for field in fields if not FILES.search(field) and field not in OF_TORCH]
    assert [field for field in fields if not _is_known(field)] == []
    known = {family.exported for family in (*FAMILIES, *HUB_FAMILIES)}
    named = set(re.findall(r"`(gradguard_[a-z_]+)", prose(path)))
    base = {re.sub(r"_(bucket|sum|count)$", "", one) for one in named}
    assert {one for one in base if not one.endswith("_")} <= known


def test_the_exit_codes_are_those_of_the_code() -> None:
    known = {*EXIT_CODES.values(), BAD_INPUT, BUSY, INTERRUPTED}
    for path in (JOBS, SERVICE):
        assert {int(row[0]) for row in rows(path, "## Exit codes")} == known, path


def test_the_table_of_commands_has_all_of_them() -> None:
    named = {codes(row[0])[0].removeprefix("gradguard ") for row in rows(SERVICE, "## The command")}
    assert named == set(COMMAND.commands)
    options = {option for row in rows(SERVICE, "## Serve") for option in codes(row[0])}
    known = {option for parameter in COMMAND.commands["serve"].params for option in parameter.opts}
    assert options == known - {"--auth", "--no-auth"}


def test_the_table_of_states_has_all_of_them() -> None:
    assert [codes(row[0])[0] for row in rows(SERVICE, "## States of a job")] == list(STATUSES)


def test_the_table_of_settings_has_all_of_them_with_their_defaults() -> None:
    named = {codes(row[0])[0]: codes(row[1])[0] for row in rows(GUARD, "### The settings")}
    kinds_own = {path for path in leaf_paths(GuardConfig) if path.startswith("clip.")}
    kinds_own -= {"clip.kind", "clip.factor", "clip.ceiling", "clip.suspect_factor"}
    assert set(named) == set(leaf_paths(GuardConfig)) - kinds_own
    for path, value in named.items():
        default: Any = GuardConfig()
        for part in path.split("."):
            default = getattr(default, part)
        shown = f"{default:g}" if isinstance(default, float | int) else default
        assert value == (
            json.dumps(default) if default is None or isinstance(default, bool | tuple) else shown
        ), path


def test_the_table_of_clips_has_every_kind_with_all_its_settings() -> None:
    table = {codes(row[0])[0]: row for row in rows(GUARD, "## Clipping")}
    assert set(table) == set(get_args(ClipKind))
    for kind, fields in _FIELDS_OF.items():
        assert set(fields) <= set(codes(table[kind][2])), kind


def test_the_tables_of_the_jobs_name_what_there_is() -> None:
    assert {code for row in rows(JOBS, "## The spec") for code in codes(row[0])} >= {"scale", "guard"}
    named = {code for row in rows(JOBS, "## Data sets") for code in codes(row[0])}
    dataset = JobSpec.model_json_schema()["$defs"]["DataSpec"]["properties"]["dataset"]
    assert named == set(dataset["enum"])
    examples = {path.name for path in (ROOT / "jobs" / "examples").iterdir() if path.suffix != ".svg"}
    assert all(f"examples/{example}" in JOBS.read_text() for example in examples)


def test_the_figures_are_pictures_with_text_that_can_be_read() -> None:
    for figure in ("spike", "modes"):
        root = ElementTree.parse(ROOT / "guard" / "figures" / f"{figure}.svg").getroot()
        texts = {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert "attempt" in texts


def _in_process(command: str) -> str:
    """Runs a command that needs no cluster, without a process."""
    words = shlex.split(command)
    assert words[0] == "gradguard", command
    done = CliRunner(env={"COLUMNS": "120"}).invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_document_of_the_guard_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Linear(8, 2)
    inputs = torch.randn(20, 64, 8)
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.5),
        "loader": [(batch, (batch[:, 0] > 0).long()) for batch in inputs],
        "loss_fn": nn.CrossEntropyLoss(),
    }
    session = Session(GUARD, _in_process, names)
    assert session.run(tmp_path) == 7
    last = json.loads((tmp_path / "drill.jsonl").read_text().splitlines()[-1])
    assert last["outcome"] == "recovered"


@pytest.mark.slow
def test_the_tutorial_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Session(ROOT / "guard" / "TUTORIAL.md", _in_process).run(tmp_path) == 4
    assert (tmp_path / "plain.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_the_notebook_of_the_guard_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {}
    for cell in json.loads((ROOT / "guard" / "guarded_loop.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["incidents"][0][2] == "rolled_back"
    before = max(names["plain"][100:200])
    assert names["guarded"][-1] < before < names["plain"][-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_document_of_the_jobs_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = Sandbox(tmp_path)
    monkeypatch.chdir(tmp_path)

    def shell(command: str) -> str:
        if command.startswith("gradguard ") and shlex.split(command)[1] not in ("train", "check"):
            return _in_process(command)
        done = sandbox.run("sh", "-c", command)
        assert done.returncode == 0, done.stdout
        if command == "gradguard train my-job.yaml":
            shutil.copytree(tmp_path / "runs" / "my-job", tmp_path / "runs" / "other-job")
        return done.stdout

    assert Session(JOBS, shell).run(tmp_path, extra="metrics:\n  port: 0\n") == 12
    job = tmp_path / "runs" / "my-job"
    assert (tmp_path / "model.safetensors").stat().st_size > 0
    _check_files_and_rows(job)


def _check_files_and_rows(job: Path) -> None:
    """The tables name every file of the folder, and every field of a row."""
    files = {code for row in rows(JOBS, "## The files of a job") for code in codes(row[0])}
    there = {path.name for path in job.iterdir() if not path.name.startswith((".", "compare-"))}
    assert there <= {file.partition("/")[0] for file in files}
    fields = {code for row in rows(JOBS, "A row of `metrics.jsonl`:") for code in codes(row[0])}
    lines = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
    assert {key for line in lines for key in line} <= fields


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[Sandbox, str]]:
    """The service as the document starts it, on a free port."""
    sandbox = Sandbox(tmp_path)
    serve = next(line for block in blocks(SERVICE) for line in commands(block) if line == "gradguard serve")
    process = sandbox.start("sh", "-c", f"exec {serve} --port=0 --lease-s=2 --num-cpus=2")
    try:
        said = read_until(process, lambda line: line.startswith("serving at "))
        shown = next(block.text for block in blocks(SERVICE) if block.text.startswith("serving at "))
        last = said.splitlines()[-1]
        assert re.sub(r"\S*[/:]\S*", "", last) == re.sub(r"\S*[/:]\S*", "", shown.strip())
        yield sandbox, last.split()[2].rstrip(",")
    finally:
        interrupt(process)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_document_of_the_service_runs_as_shown(
    service: tuple[Sandbox, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    sandbox, url = service
    monkeypatch.chdir(sandbox.path)
    monkeypatch.setenv("HOME", str(sandbox.path))
    monkeypatch.setenv("GRADGUARD_ADDRESS", url)

    def shell(command: str) -> str:
        if command.startswith("gradguard ") and shlex.split(command)[1] not in ("submit", "logs"):
            return _in_process(command)
        done = sandbox.run("sh", "-c", command)
        assert done.returncode == 0, (command, done.stdout)
        return done.stdout

    small = {"train": {"max_steps": 6}, "scale": {"workers": 1}, "faults": [{"kind": "nan_loss", "step": 3}]}
    sandbox.spec("my-job", **small)
    (program,) = [block.text for block in blocks(SERVICE) if block.language == "python"]
    python = sandbox.start(str(BIN / "python"), "-c", program.replace("http://127.0.0.1:8410", url))
    request.addfinalizer(lambda: interrupt(python, within_s=0) if python.poll() is None else None)
    sandbox.environment["GRADGUARD_ADDRESS"] = url
    said: dict[str, str] = {}
    finished = waiting = deletion = ""
    for line in (line for block in blocks(SERVICE) if block.language == "sh" for line in commands(block)):
        if line.startswith(("pip install", "export ")) or line == "gradguard serve":
            continue
        if line.startswith("gradguard delete"):
            deletion = line
            continue
        if line.startswith("gradguard stop"):  # one that waits for more CPUs than there are
            spec = sandbox.spec("large", scale={"workers": 8}, data={"batch_size": 64})
            waiting = sandbox.run(GRADGUARD, "submit", spec).stdout.strip()
        changes = line.startswith(("gradguard stop", "gradguard resume", "gradguard clone"))
        line = line.replace("JOB_ID", waiting if changes else finished).replace("http://127.0.0.1:8410", url)
        line = re.sub(r"(checkpoints/|--checkpoint )1000", r"\g<1>6", line)
        answer = shell(line)
        said[line.split()[1] if line.startswith("gradguard") else line.rpartition(url)[2]] = answer
        if line.startswith("gradguard submit"):
            finished = answer.strip()
    printed, _ = python.communicate(timeout=300)
    assert python.returncode == 0, printed
    assert "succeeded 6 0" in printed
    assert "7 points of 7" in printed
    assert "nonfinite" in said["incidents"]
    assert (sandbox.path / "report.html").exists()
    refused = next(text for path, text in said.items() if path.startswith("/v1/jobs -H"))
    shown = next(json.loads(block.text) for block in blocks(SERVICE) if block.language == "json")
    assert set(json.loads(refused)) == set(shown)
    assert shown["errors"][0].removesuffix(" ...") in json.loads(refused)["errors"][0]
    shell(deletion.replace("JOB_ID", finished))
    assert not os.path.lexists(sandbox.path / "gradguard" / "runs" / finished)
