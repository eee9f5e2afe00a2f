"""Seeded damage to a job's folder: a resume uses a whole checkpoint, and commands say what is wrong in lines.

``python tests/benchmarks/bench_damage.py --seeds 140``
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch
from measure import progress, publish

from jobs.checkpoints import CheckpointManager
from jobs.errors import JobError
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from service.cli.app import main as gradguard
from tests.jobs.checkpoints.checkpoint_fixture import Messages, parts, proven, train

STEPS = (10, 20, 30)
LIMIT_S = 60
"""A command that takes longer hangs, as on a FIFO."""
STRANGE: list[Any] = [None, True, -1, 10**20, 1e300, "nan", "", "x" * 10_000, [], {}, [[]]]
COMMANDS = (
    ("checkpoints", "{job}", "--verify"),
    ("list", "--address", "{runs}"),
    ("status", "damaged", "--address", "{runs}"),
    ("incidents", "{job}"),
    ("report", "{job}"),
)
REPORT_EVERY = 5
"""Seeds of which one has its report drawn: that takes as long as all the rest."""
Weights = dict[int, dict[str, torch.Tensor]]


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


def flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def cut(path: Path, dice: random.Random) -> None:
    os.truncate(path, dice.randrange(max(1, path.stat().st_size)))


def append(path: Path, dice: random.Random) -> None:
    with path.open("ab") as file:
        file.write(dice.randbytes(dice.randrange(1, 200)))


def value(path: Path, dice: random.Random) -> None:
    """One value of a JSON document, or of a line, becomes something else; noise where there is none."""
    lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
    number = dice.randrange(len(lines))
    try:
        document = json.loads(lines[number])
        document[dice.choice(list(document))] = dice.choice(STRANGE)
        lines[number] = json.dumps(document).encode()
    except (ValueError, TypeError, IndexError):
        lines[number] = dice.randbytes(40)
    path.write_bytes(b"\n".join(lines) + b"\n")


def another(path: Path, dice: random.Random) -> None:
    """The content of another file of the job."""
    path.write_bytes(dice.choice(sorted(p for p in job_of(path).rglob("*") if p.is_file())).read_bytes())


def replaced(make: Callable[[Path], None]) -> Callable[[Path, random.Random], None]:
    def harm(path: Path, _: random.Random) -> None:
        path.unlink()
        make(path)

    return harm


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "flip": flip,
    "cut": cut,
    "append": append,
    "value": value,
    "another": another,
    "empty": lambda path, _: path.write_bytes(b"") and None,
    "deleted": lambda path, _: path.unlink(),
    "fifo": replaced(lambda path: os.mkfifo(path)),
    "folder": replaced(lambda path: path.mkdir()),
    "link-to-nothing": replaced(lambda path: path.symlink_to("nowhere")),
    "link-to-itself": replaced(lambda path: path.symlink_to(path.name)),
    "link-to-step": lambda path, _: linked(path),
}


def linked(path: Path) -> None:
    """The newest checkpoint becomes a link to the one before, whatever the file."""
    newest = job_of(path) / "checkpoints" / f"step-{STEPS[-1]:08d}"
    shutil.rmtree(newest)
    newest.symlink_to(f"step-{STEPS[-2]:08d}")


def job_of(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.name == "damaged")


def damage(original: Path, weights: Weights, runs: Path, seed: int) -> Damaged:
    """Copies the job, harms one file of it, and returns what went wrong."""
    dice, job = random.Random(seed), runs / "damaged"
    shutil.copytree(original, job)
    kind = list(KINDS)[seed % len(KINDS)]
    file = dice.choice(sorted(path for path in job.rglob("*") if path.is_file()))
    KINDS[kind](file, dice)
    commands = COMMANDS if seed % REPORT_EVERY == 0 else COMMANDS[:-1]
    wrong = [*failures_of_commands(commands, runs, job), *failures_of_resume(job, file, weights)]
    shutil.rmtree(job)
    return Damaged(kind, str(file.relative_to(job)), tuple(wrong))


def failures_of_resume(job: Path, file: Path, weights: Weights) -> list[str]:
    """A resume must use the newest checkpoint that is whole, to the bit."""
    state = parts()
    newest = STEPS[-2] if f"step-{STEPS[-1]:08d}" in str(file) else STEPS[-1]
    try:
        found = CheckpointManager(job / "checkpoints", state, notify=Messages()).load_latest()
    except (JobError, SpecError) as error:
        return [f"no resume: {error}"]
    except Exception as error:  # noqa: BLE001 - a traceback of the user's
        return [f"resume raised {error!r}"]
    if found is None or found < newest - (STEPS[1] - STEPS[0]):
        return [f"resumed from {found}"]
    now = state["model"].state_dict()
    same = all(torch.equal(value, weights[found][name]) for name, value in now.items())
    return [] if same else [f"other weights than those of step {found}"]


def failures_of_commands(commands: Sequence[tuple[str, ...]], runs: Path, job: Path) -> list[str]:
    """Each must end in time, in lines that were foreseen."""
    wrong = []
    for words in commands:
        command = [word.format(job=job, runs=runs) for word in words]
        code, printed = run(command)
        if code not in (0, 1, 2) or "Traceback" in printed or "the traceback is in" in printed:
            wrong.append(f"{command[0]}: {code} {printed[-200:]}")
    return wrong


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


def damage_run(seeds: int, folder: Path) -> list[Damaged]:
    """So many damages, each to a fresh copy."""
    weights = a_job(folder / "original" / "damaged")
    found = []
    for seed in range(seeds):
        (folder / "runs").mkdir(exist_ok=True)
        found.append(damage(folder / "original" / "damaged", weights, folder / "runs", seed))
        if found[-1].wrong:
            progress(f"seed {seed}: {found[-1]}")
    return found


def main() -> None:
    """Prints how many of the damages were taken as they should be, by kind. Fails if one was not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=140)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        found = damage_run(options.seeds, Path(folder))
    right, of = Counter(d.kind for d in found if not d.wrong), Counter(d.kind for d in found)
    table = [{"kind": kind, "damages": of[kind], "right": right[kind]} for kind in of]
    total = {"damages": len(found), "right": right.total()}
    publish("damage", {"by kind": table, "sums": [total]}, options.json, seeds=[0, options.seeds])
    sys.exit(right.total() < len(found))


if __name__ == "__main__":
    main()
