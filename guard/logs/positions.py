"""The step of a printed line that has no name for it: a position such as ``[100/600]``."""

from __future__ import annotations

import re

from guard.logs.columns import USUAL, find

_BATCHES = re.compile(r"(?:Epoch|Train)(\(train\))?:?\s*(\[?)(\d+)\]?\s*\[\s*(\d+)/(\d+)")
"""Epoch, batch, batches: PyTorch's examples, timm, mm*."""
_NAMED = re.compile(
    r"\bepoch[\s:=\[]*(\d+)\b.{0,80}?\b(?:step|iter|iteration|batch)\w*[\s:=\[]*(\d+)\s*/\s*(\d+)", re.I
)
"""``Epoch [1/10], Step [100/600]``."""
_ITER = re.compile(r"Iter\(train\)\s*\[\s*(\d+)/\d+\]")
_FIRST = re.compile(r"^\s*(?:\[(\d+)(?:/\d+)?\]|(\d+)/\d+(?= )|(\d+)(?= (?:train|val) ))")
"""``[100/600]`` of many loops, ``[100]`` of XGBoost, ``100 train 2.31`` of build-nanogpt."""
_COUNTED_ON = ("global_step", "num_updates")


class Positions:
    """Counts the epochs from 0, whatever the log calls the first."""

    def __init__(self) -> None:
        self._first: int | None = None

    def add(self, text: str, record: dict[str, str]) -> None:
        """Adds the step to the names of a line."""
        if counted_on := find(list(record), "", _COUNTED_ON):
            record["step"] = record[counted_on]
        if not record or counted_on:
            return
        if step := self._of_epoch(text):
            record["step"] = step
        elif found := _ITER.search(text):
            record["step"] = found[1]
        elif find(list(record), "step", USUAL["step"]) is None and (found := _FIRST.search(text)):
            record["step"] = found[1] or found[2] or found[3]

    def _of_epoch(self, text: str) -> str | None:
        if "poch" not in text and "Train" not in text:
            return None
        if found := _BATCHES.search(text):
            one_based = found[1] is not None or " - mm" in text
            given, (epoch, at, length) = found[2] or one_based, map(int, found.groups()[2:])
            before = one_based if given else self._base(epoch)
        elif found := _NAMED.search(text):
            epoch, at, length = map(int, found.groups())
            before = self._base(epoch)
        else:
            return None
        return str((epoch - before) * length + at if at <= length else at)

    def _base(self, epoch: int) -> int:
        self._first = epoch if self._first is None else self._first
        return min(self._first, 1)
