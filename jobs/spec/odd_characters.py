"""Characters that look like others, or like nothing: what a web page or a word processor puts into a spec."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.spec.schema import Part, dotted

_MEANT = dict(zip("“”„«»‘’‚：，；＝－–—−｛｝［］＃．", '"""""\'\'\':,;=----{}[]#.', strict=True))
_JOINERS = "\u200c\u200d"  # part of words in some scripts
_BLANKS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and signs that look like spaces."""
BREAKS = "\x85\u2028\u2029"
"""YAML takes them for the end of a line, editors do not."""
_UNSEEN = ("Cf", "Cs")
"""Formats, and halves of characters, which no file can hold."""
_COMMENT = re.compile(r"(^|\s)#.*")


def advice(text: str) -> str | None:
    """What to write instead of the first such character; None where there is none."""
    odd = next(filter(_is_odd, text), None)
    if odd is None:
        return None
    name = f"{unicodedata.name(odd, 'character').lower()} (U+{ord(odd):04X})"
    if odd in _MEANT:
        return f"it contains a {name}: write {_MEANT[odd]}"
    if odd.isdecimal():
        return f"it contains a {name}: write {unicodedata.decimal(odd)}"
    space = unicodedata.category(odd) == "Zs" or odd in _BLANKS
    return f"it contains an invisible {name}: {'write an ordinary space' if space else 'delete it'}"


def place_of_first(text: str) -> tuple[int, int, str] | None:
    """Line, column and ``advice`` of the first one in a file, comments aside."""
    for number, line in enumerate(text.split("\n"), start=1):
        code = _COMMENT.sub("", line)
        if found := advice(code):
            return number, next(at for at, letter in enumerate(code, start=1) if _is_odd(letter)), found
    return None


def hidden_in(data: Any, parts: tuple[Part, ...] = ()) -> Iterator[tuple[str, str, str]]:
    """Path, value and advice of every text whose invisible characters nobody can have meant.

    Within a text a no-break space may be part of a folder's name; at its ends it is not, and characters
    without a width are not anywhere.
    """
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from hidden_in(value, (*parts, str(key)))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from hidden_in(value, (*parts, index))
    elif isinstance(data, str):
        zero_width = "".join(letter for letter in data if unicodedata.category(letter) in _UNSEEN)
        ends = data[: len(data) - len(data.lstrip())] + data[len(data.rstrip()) :]
        if found := advice("".join(letter for letter in zero_width + ends if letter not in _JOINERS)):
            yield dotted(parts), data, found


def _is_odd(letter: str) -> bool:
    if letter in _MEANT or letter in _BLANKS or letter in BREAKS:
        return True
    if letter.isdecimal():
        return not letter.isascii()
    return letter != " " and unicodedata.category(letter) in ("Zs", *_UNSEEN) and letter not in _JOINERS
