"""The names of training and held-out parts: ``Train`` and ``val2017``, ``seg_train`` and ``seg_test``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

TRAIN = ("train", "training", "trn")
HELD_OUT = (
    *("val", "validation", "valid", "dev", "eval", "evaluation"),
    *("test", "testing", "tst", "holdout", "heldout"),
)
_WHAT = r"set|data|images?|split|files?|samples?|examples?"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SPLIT = re.compile(rf"({'|'.join((*TRAIN, *HELD_OUT))})(?:{_WHAT})?")


class SplitName(NamedTuple):
    """What a name says: the split, and its other words; numbers and words such as ``images`` aside."""

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
