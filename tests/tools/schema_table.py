"""Renders the objects of a JSON schema as Markdown tables: field, type, default, what is allowed, meaning."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
Linker = Callable[[str], str]

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "pattern": "like `{}`",
}
_TYPES = {"integer": "whole number", "string": "text", "boolean": "true or false", "null": "null"}


def table(schema: Schema, link: Linker) -> list[str]:
    """The fields of an object; ``link`` turns the name of another object into a link to its table."""
    lines = ["| Field | Type | Default | Allowed | Meaning |", "|---|---|---|---|---|"]
    needed = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        cells = (
            f"`{name}`",
            kind(field, link),
            "required" if name in needed else default(field),
            "; ".join(allowed(field)),
            markdown(field.get("description", "")),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def kind(field: Schema, link: Linker) -> str:
    """The type of a field: ``whole number or null``."""
    if "$ref" in field:
        return link(name_of(field["$ref"]))
    if options := _options(field):
        return " or ".join(dict.fromkeys(kind(option, link) for option in options))
    if "enum" in field or "const" in field:
        return "word" if field.get("type", "string") == "string" else _TYPES[field["type"]]
    if field.get("type") == "array":
        return _array(field, link)
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"mapping of {kind(inner, link)}" if isinstance(inner, Mapping) else "mapping"
    found = str(field.get("type", "anything"))
    return _TYPES.get(found, found)


def allowed(field: Schema) -> Iterator[str]:
    """The conditions on a value."""
    if "enum" in field:
        yield ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        yield f"`{field['const']}`"
    bounds = [text.format(_number(field[key])) for key, text in _BOUNDS.items() if key in field]
    if bounds:
        yield " and ".join(bounds)
    if field.get("minLength"):
        yield "not empty" if field["minLength"] == 1 else f"at least {field['minLength']} characters"
    for option in _options(field):
        yield from allowed(option)
    items = [
        *field.get("prefixItems", ()),
        *([field["items"]] if isinstance(field.get("items"), Mapping) else []),
    ]
    yield from (f"each {text}" for text in dict.fromkeys(text for item in items for text in allowed(item)))


def default(field: Schema) -> str:
    """The value of a field that is not set; ``depends`` if it depends on other fields."""
    if "default" in field:
        return f"`{json.dumps(field['default'])}`" if field["default"] != "" else '`""`'
    if "$ref" in field or field.get("type") == "object":
        return "`{}`"
    return "depends"


def markdown(text: str) -> str:
    """A docstring as one line of Markdown: single backticks; tags and emphasis are escaped."""
    parts = re.split(r"(``.+?``)", " ".join(text.split()))
    return "".join(
        f"`{part[2:-2]}`" if part.startswith("``") and len(part) > 4 else _plain(part) for part in parts
    )


def name_of(reference: str) -> str:
    """``#/$defs/ScaleSpec`` -> ``ScaleSpec``."""
    return reference.rpartition("/")[2]


def references(field: Schema) -> Iterator[str]:
    """The names of the objects that a field may contain."""
    if "$ref" in field:
        yield name_of(field["$ref"])
    for option in _options(field):
        yield from references(option)
    if isinstance(field.get("items"), Mapping):
        yield from references(field["items"])


def _options(field: Schema) -> list[Schema]:
    return list(field.get("anyOf") or field.get("oneOf") or ())


def _array(field: Schema, link: Linker) -> str:
    if "prefixItems" in field:
        inner = dict.fromkeys(kind(item, link) for item in field["prefixItems"])
        return f"list of {len(field['prefixItems'])}: {', '.join(inner)}"
    return f"list of {kind(field['items'], link)}" if "items" in field else "list"


def _number(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value)


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
