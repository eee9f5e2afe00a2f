"""deploy/README.md speaks of what is there, and of all of it."""

import re
import shlex
import subprocess
from pathlib import Path

import typer.main
import yaml

from jobs.observability.hub import DEFAULT_PORT, ENDED_KEPT_S
from jobs.spec.job_spec import JobSpec
from service.cli.app import app

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TEXT = (DEPLOY / "README.md").read_text()


def test_every_file_is_in_the_table() -> None:
    table = TEXT[: TEXT.index("What has been checked")]
    named = set(re.findall(r"`([\w./-]+)`", table))
    for path in DEPLOY.rglob("*"):
        place = path.relative_to(DEPLOY)
        known = {str(place), *(f"{parent}/" for parent in place.parents)}
        assert path.is_dir() or path.name in {"README.md", ".env"} or named & known, place


def test_every_file_that_is_named_exists() -> None:
    for name in re.findall(r"`((?:prometheus|grafana|kubernetes|systemd|cloud)/[\w./-]*)`", TEXT):
        assert (DEPLOY / name).exists(), name
    for name in re.findall(r"deploy/[\w./-]+", TEXT):
        assert (
            name == "deploy/.env" or (DEPLOY.parent / name.rstrip(".")).exists() or name == "deploy/gradguard"
        )


def test_every_option_of_the_training_commands_exists() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"gradguard ((?:train|submit) [^\n`]*)", TEXT):
        name, *words = shlex.split(line)
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_alerts_become_a_resource_of_the_prometheus_operator() -> None:
    (command,) = re.findall(r"( +\{ printf.*?\})(?= \| kubectl)", TEXT, re.DOTALL)
    done = subprocess.run(
        ["sh", "-euc", command], cwd=DEPLOY.parent, capture_output=True, text=True, check=True
    )
    made = yaml.safe_load(done.stdout)
    assert made["kind"] == "PrometheusRule"
    monitors = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "servicemonitor.yaml").read_text()))
    selected = {monitor["metadata"]["labels"]["release"] for monitor in monitors}
    assert {made["metadata"]["labels"]["release"]} == selected, "kube-prometheus-stack takes no others"
    assert made["spec"] == yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())


def test_the_figures_are_those_of_the_code() -> None:
    spec = JobSpec.from_dict({"name": "any"})
    assert f"`guard.snapshot.keep` ({spec.guard.snapshot.keep})" in TEXT
    assert f"`train.checkpoint_keep` ({spec.train.checkpoint_keep})" in TEXT
    assert f"{ENDED_KEPT_S // 60:.0f} minutes after it ended" in " ".join(TEXT.split())
    assert f"| {DEFAULT_PORT} | metrics hub |" in TEXT


def test_every_line_of_the_threat_model_names_tests_that_exist() -> None:
    """The rows of the table: who, what they can, what they cannot, the tests; and the paragraphs below."""
    model = TEXT[TEXT.index("| Who | Can |") :].split("\n\n")[0].splitlines()[2:]
    assert len(model) >= 12
    there = {
        name
        for path in (DEPLOY.parent / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    for row in model:
        who, *_, tests = row.strip("|").split("|")
        named = set(re.findall(r"`(test_\w+)`", tests))
        assert named, f"{who}: no test"
        assert named <= there, f"{who}: {named - there}"
    for paragraph in TEXT[TEXT.index(model[-1]) :].split("Not covered:")[0].split("\n\n")[1:-1]:
        named = set(re.findall(r"`(test_\w+)`", paragraph))
        assert named, f"no test: {paragraph[:60]}"
        assert named <= there, named - there
