"""Whether a checkpoint belongs to the spec that wants to continue from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.spec_errors import Problem, SpecError

MAY_DIFFER = (
    "name",
    "storage",
    "scale",
    "train",
    "guard",
    "faults",
    "metrics",
    "data.root",
    "data.download",
    "data.test_limit",
    "data.workers",
    "data.on_broken",
)
"""Sections and fields that may change between a checkpoint and its continuation."""

MUST_MATCH = ("guard.clip.kind",)
"""Of these, what may not: its state is part of the checkpoint."""


def check_spec(saved: Mapping[str, Any], now: Mapping[str, Any], step: int) -> None:
    """Compares the spec in a checkpoint with the one that continues it; an empty one is not compared.

    Raises:
        SpecError: with every field in which they differ and may not: the value now, and the saved one.
    """
    if not saved or not now:
        return
    old, new = _leaves(saved), _leaves(now)
    fields = [field for field in {**old, **new} if old.get(field) != new.get(field) and not _free(field)]
    if fields:
        raise SpecError([_problem(field, old.get(field), new.get(field), step) for field in sorted(fields)])


def _problem(field: str, old: Any, new: Any, step: int) -> Problem:
    message = (
        f"the checkpoint of step {step} was made with {old}: "
        f"write {old} to continue it, or start a new job with --overwrite or another name"
    )
    return Problem(field, "none" if new is None else new, message)


def _free(field: str) -> bool:
    if any(_within(field, fixed) for fixed in MUST_MATCH):
        return False
    return any(_within(field, free) for free in MAY_DIFFER)


def _within(field: str, section: str) -> bool:
    return field == section or field.startswith(f"{section}.")


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: list(value) if isinstance(value, tuple) else value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _leaves(inner, f"{path}.{key}" if path else str(key)).items()
    }
