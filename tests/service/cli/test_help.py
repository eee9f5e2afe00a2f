"""What ``gradguard --help`` and ``--version`` print, and that both ways to train take the same options."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from jobs.train import _parser, continue_command
from service.cli.app import EXAMPLES, app

COMMAND: Any = typer.main.get_command(app)
LISTED = [example for panel in EXAMPLES.values() for example in panel.values()]


def test_the_version_is_one_line_with_the_packages_that_matter() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(
        r"gradguard \S+ \(torch \S+, torchvision \S+, ray \S+, python 3\.\S+\)\n", result.output
    )


def test_without_a_command_it_prints_the_help_and_succeeds() -> None:
    alone, asked = CliRunner().invoke(app, []), CliRunner().invoke(app, ["--help"])
    assert (alone.exit_code, alone.output) == (
        0,
        asked.output + "\n" * (len(alone.output) - len(asked.output)),
    )


def test_the_version_is_known_without_importing_torch_or_ray() -> None:
    program = (
        "import sys; from service.cli.app import app; app(['--version'], standalone_mode=False); "
        "sys.exit(len({'torch', 'ray'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_command_is_in_a_panel_and_has_an_example() -> None:
    assert {*COMMAND.commands} - {"notify", "tokens"} <= {
        name for panel in EXAMPLES.values() for name in panel
    }
    for name, example in ((n, e) for panel in EXAMPLES.values() for n, e in panel.items()):
        assert example in CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output


@pytest.mark.parametrize("example", LISTED)
def test_every_example_is_a_command_line_that_the_command_accepts(example: str) -> None:
    program, name, *words = shlex.split(example)
    assert program == "gradguard"
    with COMMAND.commands[name].make_context(name, words) as context:
        assert context.params


def test_both_commands_that_train_take_the_same_options_with_the_same_help() -> None:
    module = {
        action.option_strings[-1] if action.option_strings else action.dest: action.help
        for action in _parser()._actions
    }
    command = {
        param.opts[-1] if param.param_type_name == "option" else param.name: param.help
        for param in COMMAND.commands["train"].params
    }
    del module["--help"], module["--from-environment"]  # which only a submitted job has
    assert module == command


def test_the_command_that_continues_a_job_repeats_its_settings() -> None:
    line = continue_command("gradguard train", "my jobs/a.yaml", ["optimizer.lr=0.1", "name=a b"])
    assert shlex.split(line) == [
        *("gradguard", "train", "my jobs/a.yaml", "--set=optimizer.lr=0.1", "--set=name=a b")
    ]
