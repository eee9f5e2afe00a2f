"""Overrides from the command line: ``guard.clip.max_norm=0.5`` written into a parsed spec."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml
from pydantic import BaseModel

from jobs.spec.errors import SpecError, SpecProblem, single, unknown_field
from jobs.spec.load import Document
from jobs.spec.schema import Part, annotation_at, dotted, is_mapping, item_of, section_of
from jobs.spec.yaml_text import load_yaml


def apply_overrides(
    document: Document, overrides: Sequence[str], model: type[BaseModel]
) -> list[SpecProblem]:
    """Writes ``path=value`` overrides into a document; returns their errors."""
    problems: list[SpecProblem] = []
    for override in overrides:
        where = f"--set {override}"
        try:
            parts, value = _parse_override(override)
            _assign(document.data, parts, value, model)
        except SpecError as error:
            problems += [replace(problem, where=where) for problem in error.problems]
        else:
            document.where[dotted(parts)] = where
    return problems


def _invalid(parts: Sequence[Part], message: str, suggestion: str | None = None) -> SpecError:
    return single(message, path=dotted(parts), suggestion=suggestion)


def _parse_override(override: str) -> tuple[list[Part], Any]:
    path, equals, text = override.partition("=")
    names = re.sub(r"\[(\d+)\]", r".\1", path.strip()).split(".")
    if not equals or not all(names):
        raise _invalid((), "an override has the form field=value, such as guard.clip.max_norm=0.5")
    parts: list[Part] = [int(name) if name.isdecimal() else name for name in names]
    try:
        return parts, load_yaml(text)[1]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise _invalid(parts, f"the value is not valid YAML: {problem}") from None


def _assign(data: dict[str, Any], parts: list[Part], value: Any, model: type[BaseModel]) -> None:
    target: Any = data
    for depth in range(len(parts) - 1):
        target = _descend(target, parts, depth, model)
    _check_key(target, parts, len(parts) - 1, model)
    target[parts[-1]] = value


def _descend(target: Any, parts: list[Part], depth: int, model: type[BaseModel]) -> Any:
    """The container at ``parts[: depth + 1]``, created if the document has none."""
    _check_key(target, parts, depth, model)
    here = parts[: depth + 1]
    annotation = annotation_at(model, here)
    child = None if isinstance(target, dict) and parts[depth] not in target else target[parts[depth]]
    if child is None:
        child = (
            {} if section_of(annotation) or is_mapping(annotation) else [] if item_of(annotation) else None
        )
    if not isinstance(child, dict | list):
        raise _invalid(parts, f'"{dotted(here)}" is a single value, not a section')
    target[parts[depth]] = child
    return child


def _check_key(target: Any, parts: list[Part], depth: int, model: type[BaseModel]) -> None:
    part, here = parts[depth], parts[: depth + 1]
    if isinstance(target, list):
        if not isinstance(part, int) or part >= len(target):
            name = dotted(parts[:depth])
            raise _invalid(here, f'"{name}" is a list of {len(target)}: name an entry of it, as in {name}[0]')
    elif annotation_at(model, here) is None:
        raise _invalid(here, *unknown_field(model, here))
