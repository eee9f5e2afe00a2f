"""Whether a checkpoint belongs to the spec that wants to continue from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jobs.spec.errors import SpecError, SpecProblem
from jobs.spec.job_spec import JobSpec
from jobs.spec.schema import annotation_at, section_of

MAY_DIFFER = (
    "name",
    "storage",
    "scale",
    "train",
    "parallel",
    "guard",
    "faults",
    "metrics",
    "tags",
    "notify",
    "track",
    "secrets",
    "model.download",
    "model.weights",
    "model.weights_strict",
    "data.root",
    "data.stream.prefetch_blocks",
    "data.download",
    "data.test_limit",
    "data.workers",
    "data.on_broken",
    "data.on_changed",
)
"""Sections and fields that may change between a checkpoint and its continuation."""

MUST_MATCH = ("guard.clip.kind",)
"""Exceptions within those sections: their state is part of the checkpoint."""


def check_spec(saved: Mapping[str, Any], now: Mapping[str, Any], step: int) -> None:
    """Compares the spec in a checkpoint with the one that continues it; an empty one is not compared.

    A field that did not exist in the version that wrote the checkpoint counts as its default.

    Raises:
        SpecError: with every field that must match and differs: its value now, and the saved one.
    """
    old, new = _compared(saved, now)
    fields = [field for field in _differing(old, new) if _must_match(field)]
    if fields:
        raise SpecError([_problem(field, old.get(field), new.get(field), step) for field in fields])


def changed_fields(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields that differ between the spec in a checkpoint and the one that continues it, sorted."""
    return _differing(*_compared(saved, now))


def _compared(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of both; nothing where one of them is empty."""
    if not saved or not now:
        return {}, {}
    new = _leaves(now)
    defaults = {field: value for field, value in _leaves(_filled(saved)).items() if field in new}
    return {**defaults, **_leaves(saved)}, new


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(field for field in {**old, **new} if old.get(field) != new.get(field))


def _filled(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The saved spec as this version would read it; empty if it would refuse it.

    Sections that may differ are not validated.
    """
    fixed = {name: value for name, value in saved.items() if name not in MAY_DIFFER}
    try:
        return JobSpec.from_dict(_known(fixed, JobSpec)).model_dump(mode="json")
    except SpecError:
        return {}


def _known(data: Any, annotation: Any) -> Any:
    """The data without fields that no longer exist."""
    section = section_of(annotation)
    if section is None or not isinstance(data, Mapping):
        return data
    fields = section.model_fields
    return {name: _known(value, fields[name].annotation) for name, value in data.items() if name in fields}


def _problem(field: str, old: Any, new: Any, step: int) -> SpecProblem:
    if annotation_at(JobSpec, field.split(".")) is None:
        way = "this version has no such field: continue it with the one that made it"
    else:
        way = f"write {old} to continue it"
    message = (
        f"the checkpoint of step {step} was made with {old}: {way}, "
        "or start a new job with --overwrite or another name"
    )
    return SpecProblem(field, "none" if new is None else new, message)


def _must_match(field: str) -> bool:
    return _within(field, MUST_MATCH) or not _within(field, MAY_DIFFER)


def _within(field: str, sections: Iterable[str]) -> bool:
    return any(f"{field}.".startswith(f"{section}.") for section in sections)


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: list(value) if isinstance(value, tuple) else value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _leaves(inner, f"{path}.{key}" if path else str(key)).items()
    }
