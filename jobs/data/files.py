"""The files below a folder: links followed, each real folder once, hidden ones left out; what is text;
and names of training and held-out parts.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jobs.run_dir.strays import IGNORED

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json", ".arrow")
"""Of files that ``jobs.data.tables`` reads; ``.gz`` may follow."""


TRAIN = ("train", "training", "trn")
HELD_OUT = (
    *("val", "validation", "valid", "dev", "eval", "evaluation"),
    *("test", "testing", "tst", "holdout", "heldout"),
)
_WHAT = r"set|data|images?|split|files?|samples?|examples?"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SPLIT = re.compile(rf"({'|'.join((*TRAIN, *HELD_OUT))})(?:{_WHAT})?")


def files_below(folder: Path, *, ignored: Sequence[str] = IGNORED, within: Path | None = None) -> list[Path]:
    """All files that are not hidden, in an order that no file system changes; links that lead nowhere too,
    so that whoever reads them names them.

    Args:
        folder: where to look.
        ignored: names of folders to leave out.
        within: a linked folder inside of it is not followed, since it is found at its own place; ``folder``
            if None.
    """
    home = (within or folder).resolve()
    found = [Path(parent, name) for parent, names in _walk(folder, home, ignored) for name in names]
    return sorted(
        (file for file in found if file.is_file() or leads_nowhere(file)), key=lambda file: file.parts
    )


def why_no_text(content: bytes) -> str | None:
    """What is wrong with a text in UTF-8; None if it is one."""
    if content.startswith(_UTF_16):
        return "it is UTF-16: save it as UTF-8"
    if b"\0" in content:
        return "it has zero bytes, as UTF-16 and binary files do"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte {error.start} (0x{content[error.start]:02x}, in line {line})"
        return f"{byte} is not UTF-8: save it as UTF-8"
    return None


def leads_nowhere(path: Path) -> bool:
    """Whether it is a link whose target is not there."""
    return path.is_symlink() and not path.exists()


def _walk(folder: Path, home: Path, ignored: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder with the names of its files; linked folders outside of ``home`` once."""
    linked: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and name not in ignored and _is_new(Path(parent, name), home, linked)
        ]
        yield parent, [name for name in names if not name.startswith(".")]


def _is_new(folder: Path, home: Path, linked: set[Path]) -> bool:
    if not folder.is_symlink():
        return True
    real = folder.resolve()
    if real.is_relative_to(home) or home.is_relative_to(real) or any(real.is_relative_to(p) for p in linked):
        return False
    linked.add(real)
    return True


class SplitName(NamedTuple):
    """What a name as ``val2017`` or ``seg_train`` says: the split, and its other words; numbers and words
    such as ``images`` aside.
    """

    split: str
    others: tuple[str, ...]


def split_name(name: str) -> SplitName:
    """The split that a name has one word for; an empty one if it has none or several."""
    words = [word.lower() for word in _WORD.findall(re.sub(r"(?i)held[ _-]out", "heldout", name))]
    found = [match[1] for word in words if (match := _SPLIT.fullmatch(word))]
    if len(set(found)) != 1:
        return SplitName("", tuple(words))
    others = [w for w in words if not (_SPLIT.fullmatch(w) or w.isdigit() or re.fullmatch(_WHAT, w))]
    return SplitName(found[0], tuple(others))


def partners(names: Iterable[str]) -> dict[str, str]:
    """The split of each name that differs from another one in its split alone, one of them for training."""
    known = {name: split_name(name) for name in names}
    trained = {parts.others for parts in known.values() if parts.split in TRAIN}
    held_out = {parts.others for parts in known.values() if parts.split in HELD_OUT}
    both = trained & held_out
    return {name: parts.split for name, parts in known.items() if parts.split and parts.others in both}
