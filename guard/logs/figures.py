"""Numbers as tools spell them."""

from __future__ import annotations

import re

_NOTHING = frozenset(("", "null", "none", "na", "n/a", "<na>", "-", "--", "no log"))
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")
NUMBER = (
    r"[-+]?(?:1\.#\w+|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*(?:[eE][-+]?\d+)?"
    r"|(?i:nan(?:\(\w+\))?|inf(?:inity)?))"
)
"""A number in a printed line; ``1.#QNAN`` and ``nan(ind)`` are those of Microsoft's C library."""


def is_empty(cell: object) -> bool:
    """Whether nothing was logged."""
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in _NOTHING)


def number(cell: object) -> float:
    """The number of a cell that is not empty.

    Raises:
        TypeError, ValueError, OverflowError: it is none.
    """
    if isinstance(cell, bool) or not isinstance(cell, (str, int, float)):
        raise TypeError
    if not isinstance(cell, str):
        return float(cell)
    text = cell.strip().lower()
    bare = text.lstrip("+-")
    if bare.startswith("1.#inf"):
        return float(f"{text[: len(text) - len(bare)]}inf")
    if bare.startswith(("1.#", "nan(")):
        return float("nan")
    return float(text.replace(",", "") if _THOUSANDS.fullmatch(text) else text)


def with_point(cell: str) -> str:
    """A cell of a table whose columns are not separated by commas: ``0,5`` is ``0.5``."""
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell.strip()) else cell
