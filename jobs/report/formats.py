"""Numbers, shares and durations as a person writes them."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

UNKNOWN = "unknown"


def as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def number(value: float | None) -> str:
    """Three significant digits, with thousands set apart: 0.412, 1,204, 3.1e-07, NaN."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("infinite" if value > 0 else "minus infinite")
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def percent(share: float | None) -> str:
    """A share of one: 71 %, 1.2 %, 0.03 %; never 0 % or 100 % for what is only close to it."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    value = 100 * share
    if 0 < value < 0.01:
        return "<0.01 %"
    if 99.5 <= value < 100:
        return ">99 %"
    return f"{value:.0f} %" if abs(value) >= 10 else f"{value:.2g} %"


def accuracy(share: float | None) -> str:
    """A share of one with one decimal: 88.0 %."""
    return UNKNOWN if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def times(ratio: float) -> str:
    """A growth factor: 8.1 times, 35 times."""
    return f"{ratio:.2g} times" if ratio < 10 else f"{number(float(f'{ratio:.2g}'))} times"


def plural(quantity: int, noun: str, nouns: str = "") -> str:
    return f"{quantity:,} {noun if quantity == 1 else nouns or noun + 's'}"


def size_text(size: int) -> str:
    """Bytes in the largest decimal unit: 812 B, 1.5 MB, 94 MB, 3.1 GB."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value >= 999.5:
            value, unit = value / 1000, larger
    return f"{value:.2g} {unit}" if value < 10 and unit != "B" else f"{value:,.0f} {unit}"


def runs(numbers: Sequence[int]) -> list[str]:
    """Numbers in order, runs of neighbours as one: 7, 1000–1063."""
    parts: list[str] = []
    for _, group in groupby(enumerate(sorted(set(numbers))), key=lambda item: item[1] - item[0]):
        run = [value for _, value in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}")
    return parts


def duration(seconds: float | None) -> str:
    """The two largest units: 3 min 1 s, 2 h 5 min."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rest = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        amount, rest = divmod(rest, size)
        if amount or parts:
            parts.append(f"{amount} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


def listing(items: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]
