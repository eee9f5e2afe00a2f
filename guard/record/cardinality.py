"""Keeps the number of series bounded: layers in groups, and the ranks that stand out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def group_names(names: Sequence[str], limit: int) -> dict[str, str]:
    """Assigns parameter names to at most `limit` groups, each called by what its members have in common.

    The groups are the modules at the greatest depth at which there are few enough of them. Where that is a
    quarter of `limit` or less (a stack of many equal blocks), neighbours of the next depth share a group
    instead, called `first..last`.

    Args:
        names: dotted, in the model's order.
        limit: at least 1.

    Returns:
        The group of each name.
    """
    if len(names) <= limit:
        return {name: name for name in names}
    depths = range(1, 2 + max(name.count(".") for name in names))
    levels = [[".".join(name.split(".")[:depth]) for name in names] for depth in depths]
    fitting = [level for level in levels if len(set(level)) <= limit]
    if fitting and 4 * len(set(fitting[-1])) > limit:
        return dict(zip(names, fitting[-1], strict=True))
    return dict(zip(names, _chunked(levels[len(fitting)], limit), strict=True))


def group_norms(norms: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """The norm of each group of parameters: the root of the sum of their squares."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        group = groups.get(name, name)
        squares[group] = squares.get(group, 0.0) + norm * norm
    return {group: math.sqrt(square) for group, square in squares.items()}


def outliers(norms: Mapping[str, float], limit: int) -> dict[str, float]:
    """The `limit` ranks whose norm is furthest from the median in ratio; all of them where there are fewer.

    Args:
        norms: of each rank, finite.
        limit: at least 1.
    """
    if len(norms) <= limit:
        return dict(norms)
    logs = np.log(np.maximum(np.fromiter(norms.values(), float, len(norms)), 1e-300))
    distances = np.abs(logs - np.sort(logs)[len(logs) // 2])
    kept = np.sort(np.argsort(-distances, kind="stable")[:limit])
    names = list(norms)
    return {names[i]: norms[names[i]] for i in kept.tolist()}


def _chunked(groups: Sequence[str], limit: int) -> list[str]:
    """Neighbouring groups put together until there are at most `limit`."""
    ordered = list(dict.fromkeys(groups))
    size = -(-len(ordered) // limit)
    chunks: dict[str, str] = {}
    for start in range(0, len(ordered), size):
        members = ordered[start : start + size]
        called = members[0] if len(members) == 1 else f"{members[0]}..{members[-1]}"
        chunks.update(dict.fromkeys(members, called))
    return [chunks[group] for group in groups]
