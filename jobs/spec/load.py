"""Reads a spec file, YAML or JSON, and records the line of each field."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from jobs.spec.errors import SpecError, single
from jobs.spec.odd_characters import BREAKS, place_of_first
from jobs.spec.schema import dotted
from jobs.spec.yaml_text import lines_of, load_yaml

_MAX_BYTES = 1 << 17


@dataclass(slots=True)
class Document:
    """A parsed spec; ``where`` has the file and line, or the override, of each dotted path."""

    data: dict[str, Any]
    where: dict[str, str] = field(default_factory=dict)

    def source_of(self, path: str) -> str:
        """Where a field is from; empty if that is not known."""
        return self.where.get(path, self.where.get("", ""))


def read_document(path: Path) -> Document:
    """Parses a spec file.

    Raises:
        SpecError: it cannot be read, its syntax is wrong, or it is not a mapping.
    """
    return parse_document(_read(path), str(path), is_json=path.suffix.lower() == ".json")


def parse_document(text: str, label: str = "spec", *, is_json: bool = False) -> Document:
    """Parses a spec from YAML or JSON text; ``label`` is the name of the file in messages.

    Raises:
        SpecError: its syntax is wrong, or it is not a mapping.
    """
    if "\0" in text:
        raise single("is not a text file (it contains NUL bytes)", where=label)
    if not text.strip():
        raise single("is empty", where=label)
    if any(letter in text for letter in BREAKS):
        raise _with_cause(single("has a line break that editors do not show", where=label), text, label)
    try:
        document = _parse_json(text, label) if is_json else _parse_yaml(text, label)
    except RecursionError:
        raise single("is nested too deeply to be a spec", where=label) from None
    except SpecError as error:
        raise _with_cause(error, text, label) from None
    document.where[""] = label
    return document


def _read(path: Path) -> str:
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(_MAX_BYTES + 1)  # a device may have no end
    except FileNotFoundError:
        raise single("no such file", where=str(path)) from None
    except IsADirectoryError:
        raise single("is a folder; a spec is one YAML or JSON file", where=str(path)) from None
    except (OSError, RuntimeError, ValueError) as error:  # no home of ~, or a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise single(f"cannot be read: {reason}", where=str(path)) from None
    if len(content) > _MAX_BYTES:
        raise single(f"is too long: a spec has at most {_MAX_BYTES} bytes", where=str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise single("is not a text file (UTF-8)", where=str(path)) from None


def _parse_yaml(text: str, label: str) -> Document:
    try:
        node, data = load_yaml(text)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, label) from None
    except (yaml.YAMLError, ValueError) as error:
        raise single(f"is not valid YAML: {_one_line(error)}", where=label) from None
    where = {dotted(parts): f"{label}:{line}" for parts, line in lines_of(node, ())}
    return Document(_mapping(data, label), where)


def _parse_json(text: str, label: str) -> Document:
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        where = f"{label}:{error.lineno}:{error.colno}"
        raise single(f"is not valid JSON: {error.msg}", where=where) from None
    except ValueError as error:
        raise single(f"is not valid JSON: {_one_line(error)}", where=label) from None
    return Document(_mapping(data, label))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'the key "{twice}" is given twice')
    return found


def _with_cause(error: SpecError, text: str, label: str) -> SpecError:
    """A syntax error, and the character that looks like another one and may be its cause."""
    found = place_of_first(text)
    if found is None:
        return error
    line, column, what = found
    return SpecError([replace(p, suggestion=f"{label}:{line}:{column}: {what}") for p in error.problems])


def _mapping(data: object, label: str) -> dict[str, Any]:
    if isinstance(data, dict):
        return data
    one = "a list" if isinstance(data, list) else "a single value"
    found = "nothing but comments" if data is None else one
    raise single(f"contains {found}; a spec is a mapping of fields, such as `seed: 0`", where=label)


def _syntax_error(error: yaml.MarkedYAMLError, label: str) -> SpecError:
    mark = error.problem_mark or error.context_mark
    where = f"{label}:{mark.line + 1}:{mark.column + 1}" if mark else label
    context = f" ({error.context})" if error.context else ""
    tab = "write spaces instead of the tab" if "'\\t'" in str(error.problem) else None
    message = f"is not valid YAML: {_one_line(error.problem)}{_one_line(context)}"
    return single(message, where=where, suggestion=tab)


def _one_line(message: object) -> str:
    return str(message).replace("\n", " ")
