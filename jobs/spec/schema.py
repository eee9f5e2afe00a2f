"""Fields of nested pydantic models by path: their annotations and kinds."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

Part = str | int


def dotted(parts: Sequence[Part]) -> str:
    """``("faults", 0, "step")`` -> ``faults[0].step``."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation; None for a plain value, a list or a mapping."""
    members = _members(annotation)
    return next((m for m in members if isinstance(m, type) and issubclass(m, BaseModel)), None)


def item_of(annotation: Any) -> Any:
    """The annotation of the items of a list or tuple; None for anything else."""
    members = _members(annotation)
    return next((get_args(m)[0] for m in members if get_origin(m) in (list, tuple)), None)


def is_mapping(annotation: Any) -> bool:
    """Whether an annotation is a mapping with free keys."""
    return annotation is Any or any(get_origin(member) is dict for member in _members(annotation))


def annotation_at(model: type[BaseModel], parts: Sequence[Part]) -> Any:
    """The annotation of the field at a path; None if there is no such field."""
    annotation: Any = model
    for part in parts:
        annotation = _inside(annotation, part)
    return annotation


def leaf_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted paths of all fields that are not sections themselves."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from leaf_paths(inner, f"{prefix}{name}.")


def _inside(annotation: Any, part: Part) -> Any:
    section = section_of(annotation)
    if section is not None:
        field = section.model_fields.get(str(part))
        return None if field is None else field.annotation
    return Any if is_mapping(annotation) else item_of(annotation)


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the annotation alone, without metadata."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]


def without_empty_sections(data: Any, annotation: Any) -> Any:
    """The data without empty sections, such as one whose fields are all commented out."""
    section = section_of(annotation)
    if section is None or not isinstance(data, dict):
        return data
    inner = {name: _inside(annotation, name) for name in data}
    return {
        name: without_empty_sections(value, inner[name])
        for name, value in data.items()
        if value is not None or section_of(inner[name]) is None or type(None) in _members(inner[name])
    }
