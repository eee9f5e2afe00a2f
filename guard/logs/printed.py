"""Printed lines: names and their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from guard.logs.figures import NUMBER
from guard.logs.log import Lines, Log, names_of
from guard.logs.source import Source

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PRINTED = re.compile(
    r"([A-Za-z][A-Za-z_/]*(?: [A-Za-z_/]+)*)['\"]?(?:\s*[:=]\s*|\s+)['\"]?"
    rf"({NUMBER})(?![\w.])",
)
"""A name and its number."""
_RANK = re.compile(r"\[(?:default|rank)(\d+)\]:")
_EPOCH = re.compile(r"Epoch(\(train\))?:?\s*\[(\d+)\]\s*\[\s*(\d+)/(\d+)\]")
"""Epoch, batch, batches: PyTorch's examples count epochs from 0, mm* from 1."""
_ITER = re.compile(r"Iter\(train\)\s*\[\s*(\d+)/\d+\]")
_BAR = re.compile(r"(?:^|[\r\n])\s*\d+%\|[^|]*\|\s*(\d+)/(\d+) \[")
"""tqdm's bar of the training; the bars of other things have a name, or another total."""
_KINDS = (
    ("nanoGPT log", r"^iter \d+: loss \S+, "),
    ("llm.c log", r"^(?:s:\d+ t[er]l:|step +\d+/\d+ \| (?:train )?loss )"),
    ("Megatron log", r"iteration +\d+/ *\d+ \|"),
    ("torchtitan log", r"step: +\d+ +loss: +\S+ .*(?:memory|tps):"),
    ("mm* log", r"(?:Epoch|Iter)(?:\(train\)| \[\d+\]\[).*loss:"),
    ("Hugging Face or axolotl log", r"\{'loss': "),
    ("log of a progress bar", r"Epoch: ?\[\d+\]\["),
)
_OWN = {"llm.c log": {"s": "step", "trl": "loss"}, "Megatron log": {"lm loss": "loss"}}
"""Names that mean something in one tool's log alone; Megatron also prints ``mtp_1 loss``."""


def read_printed(source: Source, _: str | None = None) -> Log | None:
    """Any text with names and numbers."""
    kind = next((kind for kind, pattern in _KINDS if _shows(source, pattern)), "printed lines")
    names = names_of(_lines(source))
    own = {signal: name for name, signal in _OWN.get(kind, {}).items() if name in names}
    if kind == "llm.c log" and "loss" not in own:
        own = {}  # its console, not its main.log
    return Log(kind, names, lambda: _lines(source), own) if names else None


def _shows(source: Source, pattern: str) -> bool:
    return any(re.search(pattern, COLOUR.sub("", line)) for line in source.head)


def _lines(source: Source) -> Lines:
    """The names and numbers of each line of the first rank that prints them, with the step beside them."""
    bar: re.Match[str] | None = None
    total = first_rank = None
    for line, text in enumerate(source.lines(), start=1):
        text = COLOUR.sub("", text)
        for found in _BAR.finditer(text):
            total = total or found[2]
            bar = found if found[2] == total else bar
        rank = _RANK.search(text)
        record = dict(reversed(list(_named(text))))
        if rank and record:
            first_rank = rank[1] if first_rank is None else first_rank
            if rank[1] != first_rank:
                continue
        if bar and "'loss'" in text and "step" not in record:
            record["step"] = bar[1]
        yield line, record


def _named(text: str) -> Iterator[tuple[str, str]]:
    text = _RANK.sub("", text)
    if found := _EPOCH.search(text):
        epochs = int(found[2]) - (found[1] is not None or " - mm" in text)
        yield "step", str(epochs * int(found[4]) + int(found[3]))
    if found := _ITER.search(text):
        yield "step", found[1]
    yield from PRINTED.findall(text)
