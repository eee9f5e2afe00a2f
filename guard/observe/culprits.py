"""Which members of a batch explain what was measured of it: group tests, a few of which cost little."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

MOST = 8
"""As many are found at most."""
_PARTS = 8
_WAYS = 4
"""Parts that are followed further at a time."""

RELEVANT = 0.1
"""What explains a smaller part of the excess over the baseline is no cause of it."""

Value = Callable[[Sequence[int]], float]
"""The measure of some members, at least one; not finite where it is not, or could not be measured."""


def explain(members: Sequence[int], value: Value, whole: float, baseline: float) -> dict[int, float]:
    """By how much the measure falls without each of those that explain it, the worst first.

    Once the worst is out, the next counts by what falls without both, and so on until little is left: what
    random numbers and batch statistics of a smaller batch change explains nothing.

    Args:
        members: all of them, none twice.
        value: the measure of those that are left.
        whole: that of all.
        baseline: that of none.
    """
    measured: dict[tuple[int, ...], float] = {}

    def once(some: Sequence[int]) -> float:
        key = tuple(some)
        if key not in measured:
            measured[key] = value(some) if key else baseline
        return measured[key]

    found = _one_by_one(members, list(_drops(members, once, whole, baseline)), once, whole, baseline)
    if 2 * sum(found.values()) >= whole - baseline:
        return found
    return _together(members, once, whole, baseline) or found


def _one_by_one(
    members: Sequence[int], order: list[int], value: Value, whole: float, baseline: float
) -> dict[int, float]:
    found: dict[int, float] = {}
    least, last = RELEVANT * (whole - baseline), whole
    for one in order:
        if last - baseline < least:
            break
        now = value(_without(members, [*found, one]))
        if last - now >= least:
            found[one], last = last - now, now
    return found


def _together(members: Sequence[int], value: Value, whole: float, baseline: float) -> dict[int, float]:
    """Those of which each one is enough, as with batch statistics: it falls only without them all."""
    middle = (whole + baseline) / 2
    bad, _ = not_finite(members, lambda some: value(some) <= middle)
    rest = value(_without(members, bad)) if bad else whole
    return dict.fromkeys(bad, (whole - rest) / len(bad)) if rest <= middle else {}


def _drops(members: Sequence[int], value: Value, whole: float, baseline: float) -> dict[int, float]:
    """By how much the measure falls without each of the worst few alone, the worst first.

    The members are split into 8 parts, each of which is left out in turn, then the parts that matter, so a
    loss may weigh its members as it likes. Of a mean, up to 7 bad ones in different parts do not hide each
    other: (k - 1) / (7 / 8) < k. Two in different halves would.
    """
    relevant = (whole - baseline) / _PARTS / 2
    found: dict[int, float] = {}
    groups = [list(members)]
    while groups:
        fallen = [(_fall(members, part, value, whole), part) for g in groups for part in _split(g)]
        fallen.sort(key=lambda item: -item[0])
        found.update((part[0], fall) for fall, part in fallen if len(part) == 1)
        larger = [(fall, part) for fall, part in fallen if len(part) > 1]
        groups = [part for fall, part in larger[:_WAYS] if fall >= relevant]
        groups = groups or [part for fall, part in larger[:_WAYS] if fall > 0.0 and not found]
    return dict(sorted(found.items(), key=lambda item: -item[1])[:MOST])


def _fall(members: Sequence[int], part: list[int], value: Value, whole: float) -> float:
    rest = value(_without(members, part))
    return whole - rest if math.isfinite(rest) else -math.inf


def _split(group: list[int]) -> list[list[int]]:
    size = -(-len(group) // _PARTS)
    return [group[start : start + size] for start in range(0, len(group), size)]


def not_finite(members: Sequence[int], finite: Callable[[Sequence[int]], bool]) -> tuple[list[int], bool]:
    """Those with which the measure is not finite; and whether any of the others gave a finite one.

    The shortest beginning that is not finite ends with a bad one; the next is looked for without it. Where
    a beginning is too short to be measured, its end may be innocent: so each one is put back at the end.

    Args:
        members: all of them, none twice; together they are not finite.
        finite: whether some members, at least one, are.
    """
    bad: list[int] = []
    rest, low, healthy = list(members), 0, False
    while rest and len(bad) < MOST and not healthy:
        high = len(rest)  # the first ``low`` are finite, the first ``high`` are not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if finite(rest[:middle]) else (low, middle)
        bad.append(rest.pop(low))
        healthy = bool(rest) and finite(rest)
    known = rest if healthy else rest[:low]
    return [one for one in bad if not known or not finite([*known, one])], bool(known)


def _without(members: Sequence[int], some: Sequence[int]) -> list[int]:
    excluded = set(some)
    return [member for member in members if member not in excluded]
