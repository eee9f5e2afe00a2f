"""The kinds of damage: to one file, whatever it is, and to the newest checkpoint, its checksums right."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from jobs.checkpoints.manifest import STATE
from jobs.run_dir.storage import MANIFEST
from tests.jobs.checkpoints.checkpoint_fixture import forge

STEPS = (10, 20, 30)
STRANGE: list[Any] = [None, True, -1, 10**20, 1e300, "nan", "", "x" * 10_000, [], {}, [[]]]
STRANGE_TEXTS = ("1e999", "NaN", "-Infinity", "9" * 5000, "[" * 100_000, '{"a":' * 50_000, "\\ud800", "0x10")
HUGE_BYTES = 64 << 20
Tensors = dict[str, torch.Tensor]


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


def text(path: Path, dice: random.Random) -> None:
    """What follows a colon becomes what a parser may stumble over."""
    before, colon, after = path.read_bytes().partition(b":")
    path.write_bytes(before + colon + dice.choice(STRANGE_TEXTS).encode() + after[after.find(b",") :])


def twice(path: Path, _: random.Random) -> None:
    """The first key of a document, or the first line of a file, is there twice."""
    first, end, rest = path.read_bytes().partition(b"\n")
    again = rest.partition(b"\n")[0] if first.strip() == b"{" else first
    path.write_bytes(first + end + again + end + rest)


def no_utf8(path: Path, dice: random.Random) -> None:
    content = path.read_bytes()
    at = dice.randrange(len(content) + 1)
    path.write_bytes(content[:at] + b"\xff\xfe\x80" + content[at:])


def huge(path: Path, _: random.Random) -> None:
    with path.open("ab") as file:
        file.write(b" " * HUGE_BYTES)


def another(path: Path, dice: random.Random) -> None:
    """The content of another file of the job."""
    path.write_bytes(dice.choice(sorted(p for p in job_of(path).rglob("*") if p.is_file())).read_bytes())


def replaced(make: Callable[[Path], None]) -> Callable[[Path, random.Random], None]:
    def harm(path: Path, _: random.Random) -> None:
        path.unlink()
        make(path)

    return harm


def newest_of(job: Path) -> Path:
    """The newest checkpoint."""
    return job / "checkpoints" / f"step-{STEPS[-1]:08d}"


def job_of(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.name == "damaged")


def to_another_step(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.symlink_to(f"step-{STEPS[-2]:08d}")


def renamed(to: str) -> Callable[[Path], None]:
    return lambda checkpoint: checkpoint.rename(checkpoint.with_name(to)) and None


def tensors(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    """The tensors of a checkpoint, changed and written as if they had been so from the start."""

    def harm(checkpoint: Path) -> None:
        (path,) = checkpoint.glob("*.safetensors")
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        change(found)
        save_file(found, path, metadata=about)
        forge(checkpoint)

    return harm


def state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The same for ``state.json``."""

    def harm(checkpoint: Path) -> None:
        document = json.loads((checkpoint / STATE).read_bytes())
        change(document)
        (checkpoint / STATE).write_text(json.dumps(document))
        forge(checkpoint)

    return harm


def of_model(found: Tensors) -> str:
    """The name of a weight of the model."""
    return next(name for name in sorted(found) if name.startswith("model") and name.endswith("weight"))


def swap_parts(document: dict[str, Any]) -> None:
    parts = document["parts"]
    parts["model"], parts["optimizer"] = parts["optimizer"], parts["model"]


FILES: dict[str, Callable[[Path, random.Random], None]] = {
    "flip": flip,
    "cut": cut,
    "append": append,
    "value": value,
    "text": text,
    "twice": twice,
    "no UTF-8": no_utf8,
    "huge": huge,
    "another": another,
    "empty": lambda path, _: path.write_bytes(b"") and None,
    "deleted": lambda path, _: path.unlink(),
    "fifo": replaced(lambda path: os.mkfifo(path)),
    "folder": replaced(lambda path: path.mkdir()),
    "link to nothing": replaced(lambda path: path.symlink_to("nowhere")),
    "link to itself": replaced(lambda path: path.symlink_to(path.name)),
    "not permitted": lambda path, _: path.chmod(0),
}
"""To any one file of the job."""

CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "link to another step": to_another_step,
    "more zeros": renamed("step-000000030"),
    "fewer zeros": renamed("step-30"),
    "another step": renamed("step-1000000000"),
    "folder not permitted": lambda checkpoint: checkpoint.chmod(0),
    "NaN weight": tensors(lambda found: found[of_model(found)].view(-1)[:1].fill_(float("nan"))),
    "infinite weight": tensors(lambda found: found[of_model(found)].view(-1)[:1].fill_(float("inf"))),
    "truncated tensor": tensors(lambda f: f.update({of_model(f): f[of_model(f)][:1].clone()})),
    "other shape": tensors(lambda f: f.update({of_model(f): f[of_model(f)].T.contiguous()})),
    "no tensor": tensors(lambda found: found.pop(of_model(found))),
    "no part": state(lambda document: document["parts"].pop("model")),
    "swapped parts": state(swap_parts),
    "no rank": state(lambda document: document["ranks"].clear()),
    "ranks of more": lambda checkpoint: forge(checkpoint, world_size=2),
    "large step": lambda checkpoint: forge(checkpoint, step=10**12),
    "manifest of spaces": lambda c: (c / MANIFEST).write_bytes(b" " * 1000) and None,
}
"""To the newest checkpoint."""
