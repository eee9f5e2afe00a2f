"""Errors of a spec, worded so that the user can fix them without reading the code."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from jobs.spec.masking import masked
from jobs.spec.odd_characters import advice
from jobs.spec.schema import Part, annotation_at, dotted, leaf_paths, section_of

_LONGEST_VALUE = 60


@dataclass(frozen=True, slots=True)
class SpecProblem:
    """One error in a spec.

    Attributes:
        path: dotted path of the field, for example ``guard.clip.max_norm``; empty for the whole file.
        value: what was found there; None if there is nothing to quote.
        message: the rule that is broken, and what is allowed.
        suggestion: the spelling or value that was probably meant.
        where: its source: file and line, or the command-line override.
    """

    path: str
    value: object
    message: str
    suggestion: str | None = None
    where: str = ""

    def __str__(self) -> str:
        field = (
            self.path if self.value is None else f"{self.path} = {_quoted(masked(self.value, self._name))}"
        )
        line = ": ".join(part for part in (self.where, field, self.message) if part)
        return line if self.suggestion is None else f"{line}; {self.suggestion}"

    @property
    def _name(self) -> str:
        """The innermost name: a secret in the wrong section is not printed into a log."""
        return self.path.rpartition(".")[2].partition("[")[0]


def line_of(problem: SpecProblem) -> tuple[bool, int]:
    """Orders problems by their lines in the file; those without a line, as of an override, come first."""
    line = problem.where.rpartition(":")[2]
    return line.isdecimal(), int(line) if line.isdecimal() else 0


class SpecError(ValueError):
    """A spec is invalid; ``problems`` has every error, ``str()`` is one line for each."""

    def __init__(self, problems: Sequence[SpecProblem]) -> None:
        super().__init__(problems)
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def did_you_mean(word: str, options: Iterable[str]) -> str | None:
    """A question with the option closest to a misspelt word; None if none is close."""
    by_lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f'did you mean "{by_lower[near[0]]}"?' if near else None


def unknown_field(model: type[BaseModel], parts: Sequence[Part]) -> tuple[str, str | None]:
    """Message and suggestion for an unknown field, whose name may exist in another section."""
    section = section_of(annotation_at(model, parts[:-1]))
    allowed = list(section.model_fields) if section else []
    name = str(parts[-1]) if parts else ""
    suggestion = did_you_mean(name, allowed)
    elsewhere = [path for path in leaf_paths(model) if path.rpartition(".")[2] == name]
    if elsewhere:
        nearest = min(elsewhere, key=lambda path: path.count("."))
        suggestion = f'did you mean "{nearest}"?'
    suggestion = advice(name) or suggestion
    return f"unknown field (allowed: {', '.join(allowed)})", suggestion


def related(
    message: str, *, value: object, field: str = "", suggestion: str | None = None
) -> PydanticCustomError:
    """The error of a validator about one field of the section that it validates."""
    context = {"text": message, "field": field, "value": value, "suggestion": suggestion}
    return PydanticCustomError("related", "{text}", context)


def problems_of(
    error: ValidationError, model: type[BaseModel], data: object, where: Mapping[str, str]
) -> list[SpecProblem]:
    """Translates pydantic's errors; the alternatives of a union become one problem.

    Args:
        error: raised while validating ``data`` against ``model``.
        data: the document; parts of a location that it does not have are labels added by pydantic.
        where: the source of each dotted path; the empty path is the document itself.
    """
    merged: dict[str, SpecProblem] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] == "default_factory_not_called":
            continue  # the default depends on a field that is itself wrong
        problem = _problem(detail, model, data, where)
        first = merged.get(problem.path)
        merged[problem.path] = problem if first is None else _either(first, problem)
    return list(merged.values())


def _problem(
    detail: ErrorDetails, model: type[BaseModel], data: object, where: Mapping[str, str]
) -> SpecProblem:
    parts = list(_real_parts(detail, data))
    context = detail.get("ctx", {})
    value, suggestion = detail["input"], context.get("suggestion")
    if detail["type"] == "related":
        parts += [context["field"]] if context["field"] else []
        message, value = context["text"], context["value"]
    elif detail["type"] == "json_invalid":
        deep = "recursion" in detail["msg"]
        message = f"is {'nested too deeply to be a spec' if deep else 'no text in UTF-8'}"
        value = None
    elif detail["type"] == "extra_forbidden":
        message, suggestion = unknown_field(model, parts)
    elif detail["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        message = f"must be one of {', '.join(options)}"
        suggestion = did_you_mean(str(value), options) if advice(str(value)) is None else None
    else:
        message, suggestion = _plain(detail["msg"]), _what_to_write(detail)
    if isinstance(value, str) and (odd := advice(value)) and suggestion != odd:
        suggestion = f"{odd}, or {suggestion}" if suggestion else odd
    quoted = None if detail["type"] == "missing" or isinstance(value, dict) else value
    return SpecProblem(dotted(parts), quoted, message, suggestion, _source(parts, where))


def _either(first: SpecProblem, second: SpecProblem) -> SpecProblem:
    message = f"{first.message}, or {second.message.removeprefix('must be ')}"
    return SpecProblem(first.path, first.value, message, first.suggestion or second.suggestion, first.where)


def _real_parts(detail: ErrorDetails, data: object) -> Iterator[Part]:
    """The location without the labels of union members, which are not in the document."""
    *inner, last = detail["loc"] or ("",)
    for part in inner:
        if _has(data, part):
            data = data[part]  # type: ignore[index]
            yield part
    if last != "" and (_has(data, last) or detail["type"] == "missing" or not inner):
        yield last


def _has(data: object, part: Part) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _source(parts: Sequence[Part], where: Mapping[str, str]) -> str:
    """The source of a field, or of the closest section around it that has one."""
    for end in range(len(parts), -1, -1):
        if (path := dotted(parts[:end])) in where:
            return where[path]
    return ""


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    message = re.sub(r"a valid dictionary or instance of \w+|an object", "a section of fields", message)
    message = message.replace("Field required", "is required")
    return re.sub(r"String should (have|match)", r"must \1", message)


def _what_to_write(detail: ErrorDetails) -> str | None:
    """What to write instead of a value of the wrong type, if that is clear."""
    kind, value = detail["type"], detail["input"]
    if isinstance(value, str) and (found := advice(value)):
        return found
    if kind == "bool_type" and isinstance(value, str):
        truth = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower())
        return f"write {truth}" if truth else None
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str) and _is_number(value):
        return "write it without quotes"
    if kind == "string_type" and isinstance(value, int | float | bool):
        return "write it in quotes"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _quoted(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def single(
    message: str, *, where: str = "", path: str = "", value: Any = None, suggestion: str | None = None
) -> SpecError:
    """A ``SpecError`` with one problem."""
    return SpecError([SpecProblem(path, value, message, suggestion, where)])
