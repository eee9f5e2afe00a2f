"""Progress bars: the step of what they display, and the last display of each step."""

from __future__ import annotations

import re

from guard.logs.columns import USUAL, find, find_loss
from guard.logs.log import Lines

_UNNAMED = re.compile(r"(?:^|[\r\n])\s*\d+%\|[^|]*\|\s*(\d+)/(\d+) \[")
"""tqdm's bar of the training; the bars of other things have a name, or another total."""
_TQDM = re.compile(r"(?:\d+%\|[^|]*\|\s*(\d+)/(\d+)|\b(\d+)it)\s*\[")
_OF_EPOCH = re.compile(r"\bepoch[^\d|]{0,3}(\d+)(?![\d%])", re.I)
"""Which epoch a bar is of; ``Epoch: 3%|`` is a bar of epochs."""
_EPOCH = re.compile(r"^Epoch (\d+)/\d+\s*$")
_KERAS = re.compile(r"^\s*\d+/\d+ (?:[\[━]|- )")


class Bars:
    """Reads tqdm's and Keras' bars in the order of the log."""

    def __init__(self) -> None:
        self._unnamed: tuple[str, str] | None = None
        self._total: int | None = None
        self._at = self._before = 0
        self._epoch: str | None = None
        self._of_epoch: str | None = None
        self._pending: tuple[int, dict[str, str]] | None = None

    def look(self, text: str) -> None:
        """Keeps the position that a line shows for those below it."""
        for found in _UNNAMED.finditer(text) if "%|" in text else ():
            if self._unnamed is None or found[2] == self._unnamed[1]:
                self._unnamed = found[1], found[2]
        if epoch := _EPOCH.match(text):
            self._epoch = epoch[1]

    def add(self, line: int, text: str, record: dict[str, str]) -> Lines:
        """The records that are complete, of a line with these names."""
        shown = self._shown(text, record)
        if shown is None:
            yield from self.rest()
            if self._unnamed and "'loss'" in text and "step" not in record:
                record["step"] = self._unnamed[0]
            yield line, record
            return
        if self._pending is not None and self._pending[1]["step"] != shown["step"]:
            yield from self.rest()
        self._pending = line, shown

    def rest(self) -> Lines:
        """The last display."""
        if self._pending is not None:
            yield self._pending
        self._pending = None

    def _shown(self, text: str, record: dict[str, str]) -> dict[str, str] | None:
        """A display's record with its step, which the next display of the same step replaces."""
        if not find_loss(list(record)):
            return None
        if self._epoch is not None and _KERAS.match(text):
            return record | {"step": self._epoch}
        bar = _TQDM.search(text) if "[" in text else None
        if bar is None:
            return None
        named = find(list(record), "step", USUAL["step"])
        if named:
            return record | {"step": record[named]}
        epoch = _OF_EPOCH.search(text)
        if epoch:
            self._begin(epoch[1])
        return record | {"step": self._counted_on(int(bar[1] or bar[3]), int(bar[2] or 0))}

    def _begin(self, epoch: str) -> None:
        """The bar of another epoch may be shown only where the last one was: at its end."""
        if self._of_epoch not in (None, epoch):
            self._before += self._total or self._at
            self._at = 0
        self._of_epoch = epoch

    def _counted_on(self, at: int, total: int) -> str:
        """The position in all epochs: each epoch's bar starts again."""
        if at < self._at:
            self._before += self._total or 0
        self._at, self._total = at, total
        return str(self._before + at)
