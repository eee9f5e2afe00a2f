"""Seeded damage to a job's folder: a resume uses a whole checkpoint, and commands say what is wrong in lines.

``python tests/benchmarks/bench_damage.py --seeds 140``
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch
from damage.kinds import CHECKPOINTS, FILES, STEPS, newest_of
from measure import progress, publish
from safetensors import SafetensorError
from safetensors.torch import load_file
from starlette.testclient import TestClient

from jobs.checkpoints import CheckpointManager
from jobs.errors import JobError
from jobs.models.exported import load_model
from jobs.run_dir.storage import MANIFEST
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from service.cli.app import main as gradguard
from service.cli.checkpoints import DAMAGED
from tests.jobs.checkpoints.checkpoint_fixture import Messages, parts, proven, train
from tests.service.api.api_fixture import Api

LIMIT_S = 60
"""A command that takes longer hangs, as on a FIFO."""
KINDS = (*FILES, *CHECKPOINTS)
OTHER_SHAPES = ("truncated tensor", "other shape")
"""A checkpoint does not say the shapes of a model: a resume refuses it; an export and `--verify` do not."""
COMMANDS = (
    ("list", "--address", "{runs}"),
    ("status", "damaged", "--address", "{runs}"),
    ("incidents", "{job}"),
    ("predict", "{job}", "{runs}/none.png"),
    ("checkpoints", "{job}", "--export", "30", "--to", "{runs}/exported.safetensors"),
    ("checkpoints", "{job}", "--compare", "20", "30"),
    ("report", "{job}"),
)
ASKED = (
    "",
    "/metrics",
    "/incidents",
    "/checkpoints",
    "/checkpoints/30",
    "/files/result.json",
    "/live",
    "/report",
)
REPORT_EVERY = 5
"""Seeds of which one has its report drawn: that takes as long as all the rest."""
Weights = dict[int, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Service:
    """A service that knows the job."""

    client: TestClient
    job: str


@dataclass(frozen=True, slots=True)
class Damaged:
    """What was done to which file, and what went wrong then; nothing if all was right."""

    kind: str
    file: str
    wrong: tuple[str, ...]


def a_job(folder: Path) -> Weights:
    """A folder as a job of 30 steps leaves it; returns the weights of each checkpoint."""
    folder.mkdir(parents=True)
    state, weights = parts(), {}
    spec = JobSpec.from_dict({"name": "damaged", "train": {"max_steps": 30}})
    (folder / "spec.yaml").write_text(spec.to_yaml())
    manager = CheckpointManager(folder / "checkpoints", state)
    for step in STEPS:
        train(state, 2)
        proven(manager, step)
        weights[step] = {name: value.clone() for name, value in state["model"].state_dict().items()}
    rows = [
        {"time": i, "attempt": i, "step": i, "loss": 1 / i, "action": "applied", "verdict": "ok"}
        for i in range(1, 31)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    incident = {"type": "incident", "id": 1, "step": 9, "verdict": "nonfinite", "action": "skipped"}
    (folder / "incidents.jsonl").write_text(f"{json.dumps(incident)}\n")
    (folder / "result.json").write_text(json.dumps({"status": "stopped", "steps": 30}))
    return weights


def damage(original: Path, weights: Weights, runs: Path, service: Service, seed: int) -> Damaged:
    """Copies the job, harms one file of it, and returns what went wrong."""
    dice, job = random.Random(seed), runs / "damaged"
    shutil.copytree(original, job)
    kind, file = KINDS[seed % len(KINDS)], newest_of(job) / MANIFEST
    if kind in FILES:
        file = dice.choice(sorted(path for path in job.rglob("*") if path.is_file()))
        FILES[kind](file, dice)
    else:
        CHECKPOINTS[kind](newest_of(job))
    commands = COMMANDS if seed % REPORT_EVERY == 0 else COMMANDS[:-1]
    printed = failures_of_commands(commands, runs, job)
    exported = failures_of_export(runs / "exported.safetensors", weights)
    wrong = [
        *printed,
        *failures_of_model(job),
        *([] if kind in OTHER_SHAPES else exported),
        *failures_of_service(service, seed),
        *failures_of_resume(job, file, weights, kind),
    ]
    shutil.rmtree(job)
    return Damaged(kind, str(file.relative_to(job)), tuple(wrong))


def failures_of_model(job: Path) -> list[str]:
    """The trained model, or one line."""
    try:
        load_model(job)
    except JobError as error:
        return ["load_model: more than a line"] if "\n" in str(error) else []
    except Exception as error:  # noqa: BLE001 - a traceback of the user's
        return [f"load_model raised {error!r}"]
    return []


def failures_of_export(file: Path, weights: Weights) -> list[str]:
    """What was exported is what was trained."""
    if not file.exists():
        return []
    try:
        exported = load_file(file)
    except SafetensorError as error:
        return [f"exported: {error}"]
    finally:
        file.unlink()
    wanted = weights[STEPS[-1]]
    same = exported.keys() == wanted.keys() and all(torch.equal(exported[k], wanted[k]) for k in wanted)
    return [] if same else ["exported other weights"]


def failures_of_service(service: Service, seed: int) -> list[str]:
    """Each request is answered, by no error of the service's own."""
    wrong = []
    for what in ASKED if seed % REPORT_EVERY == 0 else ASKED[:-1]:
        answer = service.client.get(f"/v1/jobs/{service.job}{what}")
        if answer.status_code >= 500:
            wrong.append(f"GET {what}: {answer.status_code} {answer.text[:200]}")
    return wrong


def failures_of_resume(job: Path, file: Path, weights: Weights, kind: str) -> list[str]:
    """A resume must use the newest whole checkpoint, to the bit, and `--verify` must name those after it."""
    state, (code, printed) = parts(), run(["checkpoints", str(job), "--verify"])
    if unforeseen(code, printed):
        return [f"verify: {code} {printed[-200:]}"]
    newest = STEPS[-2] if f"step-{STEPS[-1]:08d}" in str(file) else STEPS[-1]
    try:
        found = CheckpointManager(job / "checkpoints", state, notify=Messages()).load_latest()
    except (JobError, SpecError) as error:
        return [f"no resume: {error}"]
    except Exception as error:  # noqa: BLE001 - a traceback of the user's
        return [f"resume raised {error!r}"]
    if found is None or found < newest - (STEPS[1] - STEPS[0]):
        return [f"resumed from {found}"]
    named = code == DAMAGED and f"step {STEPS[-1]}" in printed
    if found < STEPS[-1] and not named and kind not in OTHER_SHAPES:
        return [f"resumed from {found}; verify: {code} {printed[-200:]}"]
    now = state["model"].state_dict()
    same = all(torch.equal(value, weights[found][name]) for name, value in now.items())
    return [] if same else [f"other weights than those of step {found}"]


def failures_of_commands(commands: Sequence[tuple[str, ...]], runs: Path, job: Path) -> list[str]:
    """Each must end in time, in lines that were foreseen."""
    wrong = []
    for words in commands:
        command = [word.format(job=job, runs=runs) for word in words]
        code, printed = run(command)
        if unforeseen(code, printed):
            wrong.append(f"{command[0]}: {code} {printed[-200:]}")
    return wrong


def unforeseen(code: object, printed: str) -> bool:
    """Whether a command ended otherwise than in lines."""
    return code not in (0, 1, 2) or "Traceback" in printed or "the traceback is in" in printed


def run(command: list[str]) -> tuple[object, str]:
    """The command in this process: its exit code, or what it raised, and what it printed."""
    printed, sys.argv = io.StringIO(), ["gradguard", *command]

    def hangs(*_: object) -> None:
        raise TimeoutError(f"not over after {LIMIT_S} s")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LIMIT_S)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            gradguard()
    except SystemExit as ended:
        return ended.code or 0, printed.getvalue()
    except BaseException as error:  # noqa: BLE001 - counted
        return repr(error), printed.getvalue()
    finally:
        signal.alarm(0)
    return 0, printed.getvalue()


def damage_run(seeds: Sequence[int], folder: Path) -> list[Damaged]:
    """The damages of these seeds, each to a fresh copy."""
    weights = a_job(folder / "original" / "damaged")
    api, found = Api(folder, auth=False), []
    job, runs = api.submitted(), api.root / "runs"
    api.context.store.change(job, lambda row: setattr(row, "folder", str(runs / "damaged")))
    for seed in seeds:
        runs.mkdir(exist_ok=True)
        found.append(damage(folder / "original" / "damaged", weights, runs, Service(api.client(), job), seed))
        if found[-1].wrong:
            progress(f"seed {seed}: {found[-1]}")
    return found


def main() -> None:
    """Prints how many of the damages were taken as they should be, by kind. Fails if one was not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=140)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        found = damage_run(range(options.first, options.first + options.seeds), Path(folder))
    right, of = Counter(d.kind for d in found if not d.wrong), Counter(d.kind for d in found)
    table = [{"kind": kind, "damages": of[kind], "right": right[kind]} for kind in of]
    total = {"damages": len(found), "right": right.total()}
    publish(
        "damage",
        {"by kind": table, "sums": [total]},
        options.json,
        seeds=[options.first, options.first + options.seeds],
    )
    sys.exit(right.total() < len(found))


if __name__ == "__main__":
    main()
