"""Whether a checkpoint was trained on the data that are to continue it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

INSIST = (
    "bring the old data back, start from the beginning with --overwrite, or continue on these with "
    "--set data.on_changed=continue"
)
_NAMED = 3


def other_data(saved: Mapping[str, Any], now: Mapping[str, Any], step: int) -> str | None:
    """How the data differ, in one line; None where they are the same, or nothing is known of one of them.

    Args:
        saved: of the checkpoint: ``classes`` (names, in the order of the outputs), ``samples`` (their number)
            and ``fingerprint`` (text that identifies them), each where it is known.
        now: the same of the job.
        step: of the checkpoint.
    """
    start = f"the data changed since the checkpoint of step {step}"
    for name in ("classes", "samples", "fingerprint"):
        old, new = saved.get(name), now.get(name)
        if old is None or new is None or old == new:
            continue
        if name == "classes":
            return f"{start}: {_classes(list(old), list(new))}"
        what = f"{old} samples then, {new} now" if name == "samples" else f"{old} then, {new} now"
        return f"{start}: {what}"
    return None


def _classes(old: Sequence[str], new: Sequence[str]) -> str:
    gone, added = [n for n in old if n not in new], [n for n in new if n not in old]
    parts = [f"the class {_names(gone)} is gone" if gone else "", f"{_names(added)} is new" if added else ""]
    if not (gone or added):
        parts = [f"the classes are in another order: {_names(old)} then, {_names(new)} now"]
    moved = [n for n in old if n in new and old.index(n) != new.index(n)]
    if (gone or added) and moved:
        parts.append(f"{_names(moved)} would be another output of the model")
    return ", ".join(filter(None, parts))


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
