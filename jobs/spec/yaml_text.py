"""YAML by the rules of version 1.2, read safely.

``1e-3`` is a number, only ``true`` and ``false`` are booleans (``off`` stays a word), no value becomes a date
or an octal number, each key is a text, and a duplicate key is an error. On PyYAML: ruamel.yaml reads half as
fast, reads dates, and writes ``off`` in a way that a reader of YAML 1.1 takes for false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from jobs.spec.schema import Part

__all__ = ["dump_yaml", "lines_of", "load_yaml"]

_MAX_NODES = 20_000  # stops aliases that expand without end; a real spec has a few hundred

_SCALARS: tuple[tuple[str, str, list[str]], ...] = (  # tag, pattern, first characters
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9][0-9_]*", [*"-+0123456789"]),
    ("float", r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", [*"-+."]),
    ("merge", r"<<", ["<"]),
)


def load_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """The node tree, which has the lines, and the data.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not YAML, too large, or nested too deeply.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        for count, _ in enumerate(lines_of(node, ())):
            if count > _MAX_NODES:
                raise ValueError(f"more than {_MAX_NODES} values")
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


def dump_yaml(data: Any) -> str:
    """Text that any YAML parser, of version 1.1 or 1.2, reads as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key "{key.value}" is given twice', key.start_mark
                )
            seen.add(str(key.value))
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = self.DEFAULT_SCALAR_TAG  # as JSON has them, and as they are written: 007, no
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Also quotes what only YAML 1.2 reads as a number, such as ``1e3``."""


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value.replace("_", "")))
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in _Loader.yaml_constructors.items()
    if tag not in {f"tag:yaml.org,2002:{name}" for name in ("binary", "timestamp", "set", "omap", "pairs")}
}
"""Without what JSON cannot hold."""
