"""Printed lines: names and their numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from guard.logs.bars import Bars
from guard.logs.columns import find_loss, is_evaluation, plain
from guard.logs.figures import NUMBER
from guard.logs.log import Lines, Log
from guard.logs.positions import Positions
from guard.logs.source import Source

COLOUR = re.compile(r"(?:\x1b|\^\[|#033)\[[0-9;?]*[A-Za-z]")
PRINTED = re.compile(
    r"(?<!\w)([A-Za-z][A-Za-z_/]{0,80}(?: [A-Za-z_/]{1,80}){0,6})['\"]?"
    r"(?:\s*[:=]\s*\[?\s*|\s*\[\s*|\s+)['\"]?"
    rf"({NUMBER})(?![\w%]|\.\w)",
)
"""A name and its number; percentages are none. The bounds keep a line of prose from taking minutes."""
_RANK = re.compile(
    r"\[(?:default|rank)[ :]?(\d+)\]:|\(\w+ pid=(\d+)[^)]*\)|\[\d+,mpirank:(\d+)[^\]]*\]<stdout>:"
    r"|^\s*(\d+): (?=.*\b(?:step|iter))"
)
"""torchrun, torchtitan; Ray; SageMaker; ``srun --label``."""
_LEVELS = ("INFO", "WARNING", "DEBUG")
_PREFIX = re.compile(rf"^.*?\b(?:{'|'.join(_LEVELS)})\b[\s:|\]-]*(?:[\w.<>]+:[\w.<>]+:\d+ - )?")
"""What loggers print before a message, loguru's place in the code too."""
_WRAPPER = re.compile(r"\b(?:tensor|Array|array|(?:np|numpy|jnp)\.\w+)\((?=[-+\dni])")
"""``tensor(2.31)``, ``np.float32(2.31)``."""
_ABBREVIATED = re.compile(r"(?<=\b[Vv]al)\. ")
_KINDS = (
    ("nanoGPT log", r"^iter \d+: loss \S+, "),
    ("llm.c log", r"^(?:s:\d+ t[er]l:|step +\d+/\d+ \| (?:train )?loss )"),
    ("build-nanogpt log.txt", r"^\d+ (?:train|val) \d+\.\d+$"),
    ("nanochat log", r"^step \d+/\d+ \(.*\| loss: .*\| lrm: "),
    ("modded-nanogpt log", r"^step:\d+/\d+ (?:train|val)_loss:\S+ train_time:"),
    ("Megatron log", r"iteration +\d+/ *\d+ \|"),
    ("torchtitan log", r"step: +\d+ +loss: +\S+ .*(?:memory|tps):"),
    ("fairseq log", r"\bloss\b.*num_updates.*gnorm"),
    ("MaxText log", r"completed step: \d+, seconds: "),
    ("mm* log", r"(?:Epoch|Iter)(?:\(train\)| \[\d+\]\[| \[\d+/\d+\]).*loss:"),
    ("Hugging Face or axolotl log", r"\{'loss': "),
    ("Keras log", r"^ *\d+/\d+ (?:[\[━]|- ).*- loss: "),
    ("log of a progress bar", r"Epoch: ?\[\d+\]\[|\d%\|.*\| *\d+/\d+ \[.*loss"),
)
_OWN = {
    "llm.c log": {"s": "step", "trl": "loss"},
    "Megatron log": {"lm loss": "loss"},
    "build-nanogpt log.txt": {"train": "loss"},
}
"""Names that mean something in one tool's log alone; Megatron also prints ``mtp_1 loss``."""
_RARE = 20
"""A loss printed so many times less often than another is not the training's: ``loss = 0`` in code."""
_STEPS = frozenset(("step", "iteration", "iter", "update"))


def read_printed(source: Source, _: str | None = None) -> Log | None:
    """Any text with names and numbers."""
    kind = next((kind for kind, pattern in _KINDS if _shows(source, pattern)), "printed lines")
    counts = _counts(source, evaluations=False)
    evaluations = find_loss(list(counts)) is None  # all of the log looks like an evaluation
    if evaluations:
        counts = _counts(source, evaluations=True)
    names = list(counts)
    own = {signal: name for name, signal in _OWN.get(kind, {}).items() if name in names}
    if kind == "llm.c log" and "loss" not in own:
        own = {}  # its console, not its main.log
    if "loss" not in own and (loss := find_loss(_frequent(counts))):
        own["loss"] = loss
    return Log(kind, names, lambda: _lines(source, evaluations=evaluations), own) if names else None


def _shows(source: Source, pattern: str) -> bool:
    return any(re.search(pattern, COLOUR.sub("", line)) for line in source.head)


def _counts(source: Source, *, evaluations: bool) -> Counter[str]:
    """How often each name is printed."""
    return Counter(name for _, record in _lines(source, evaluations=evaluations) for name in record)


def _frequent(counts: Counter[str]) -> list[str]:
    losses = [count for name, count in counts.items() if "loss" in name.lower() and not is_evaluation(name)]
    return [name for name, count in counts.items() if count * _RARE > max(losses, default=0)]


def _lines(source: Source, *, evaluations: bool) -> Lines:
    """The names and numbers of each line of the first rank that prints a loss, with the step beside them."""
    bars, positions, first_rank = Bars(), Positions(), None
    for line, raw in enumerate(source.lines(), start=1):
        text = COLOUR.sub("", raw) if "[" in raw else raw
        bars.look(text)
        labels = _RANK.search(text)
        message = _message(text)
        if not evaluations and _is_of_evaluation(message):
            continue
        record = dict(reversed(list(_named(message))))
        rank = next(filter(None, labels.groups()), "") if labels else record.get("Rank")
        if rank and find_loss(list(record)):
            first_rank = rank if first_rank is None else first_rank
        if rank and first_rank is not None and rank != first_rank:
            continue
        positions.add(text, record)
        yield from bars.add(line, text, record)
    yield from bars.rest()


def _message(text: str) -> str:
    """Without what loggers, launchers and libraries print around it. The tests of letters save time."""
    text = _RANK.sub("", text)
    if any(level in text for level in _LEVELS):
        text = _PREFIX.sub("", text)
    return _ABBREVIATED.sub(" ", _WRAPPER.sub("", text) if "(" in text else text)


def _named(text: str) -> Iterator[tuple[str, str]]:
    for found in PRINTED.finditer(text):
        words = found[1].removesuffix(" is").split()
        name = words[-1] if words[-1].lower() in _STEPS and len(words) > 1 else " ".join(words)
        yield name, found[2]


def _is_of_evaluation(text: str) -> bool:
    """``Test: [0/78] Loss 2.1``, ``validate step: 10 loss: 2.1``; not ``step 10 val_loss 2.1 loss 2.0``."""
    found = PRINTED.search(text)
    if found is None:
        return False
    before, name = text[: found.start(1)], found[1]
    named = is_evaluation(name) and not plain(name).endswith("loss")
    return (named or is_evaluation(before)) and "train" not in text.lower()
