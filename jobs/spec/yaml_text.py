"""YAML by the rules of version 1.2, safely.

``1e-3`` is a number, only ``true`` and ``false`` are booleans (``off`` stays the word that it is), no value
turns into a date or an octal number behind one's back, and a key given twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from jobs.spec.schema import Part

__all__ = ["dump_yaml", "lines_of", "load_yaml"]

_MOST_NODES = 20_000  # stops aliases that expand without end; a real spec has a few hundred


def load_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        for count, _ in enumerate(lines_of(node, ())):
            if count > _MOST_NODES:
                raise ValueError(f"more than {_MOST_NODES} values")
        return node, None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def lines_of(node: yaml.Node | None, parts: tuple[Part, ...]) -> Iterator[tuple[tuple[Part, ...], int]]:
    """Path and line of every field below a node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*parts, str(key.value))
            yield here, key.start_mark.line + 1
            yield from lines_of(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*parts, index), value.start_mark.line + 1
            yield from lines_of(value, (*parts, index))


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, that refuses a key given twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key "{key.value}" is given twice', key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _scalar(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_scalar("null", r"~|null|Null|NULL|", "~nN")
_Loader.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile("^$")))
_scalar("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_scalar("int", r"[-+]?[0-9][0-9_]*", "-+0123456789")
_scalar("float", r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_scalar("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")
_scalar("merge", r"<<", "<")
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value.replace("_", "")))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes what only YAML 1.2 takes for a number, such as ``1e3``."""


for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def dump_yaml(data: Any) -> str:
    """Text that any YAML parser, of version 1.1 or 1.2, reads as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
