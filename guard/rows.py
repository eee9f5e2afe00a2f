"""Records as rows of strict JSON: exact when written, lenient when read.

JSON has no NaN and no infinity: a float that is not finite is stored as the text ``nan``, ``inf``, ``-inf``.
The declared type of a field decides what is read back, so a job may be called ``nan``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_MISSING: dict[Any, Any] = {float: math.nan, int: 0, str: "", bool: False}
"""What stands in a required field that a row lacks, by its type."""
_EXACT = 2**53


class Row:
    """Base of the records. A field can be read as an item too, as in ``incident.layers[0]["name"]``."""

    __slots__ = ()

    def to_row(self) -> dict[str, Any]:
        """The record as strict JSON; sparse fields are omitted while they have their default."""
        return to_row(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The record in a row; a field that is missing or of another type is None, or else its default."""
        return from_row(cls, row)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Cell(NamedTuple):
    """How one field is stored: under which key (None: its own fields are part of the row), read by what."""

    name: str
    key: str | None
    sparse: bool
    default: Callable[[], Any]
    read: Callable[[Any], Any]


def stored(default: Any, *, unit: str = "", key: str = "", sparse: bool = False, **more: Any) -> Any:
    """A dataclass field with its unit, its key where that is not its name, and whether it is often absent.

    A type as default is its factory. ``flat``: the fields of a nested record are part of the row;
    ``unstored``: the field is not written.
    """
    metadata = {"unit": unit, "key": key, "sparse": sparse, **more}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def to_row(record: Any) -> dict[str, Any]:
    """A dataclass as strict JSON, by the keys of its fields."""
    row: dict[str, Any] = {}
    for cell in cells(type(record)):  # type: ignore[arg-type]
        value = getattr(record, cell.name)
        if cell.key is None:
            row |= to_row(value)
        elif not (cell.sparse and value == cell.default()):
            row[cell.key] = strict(value)
    return row


def from_row(kind: type[T], row: Mapping[str, Any]) -> T:
    """A dataclass from a row: never an error, whatever the row holds."""
    values = {}
    for cell in cells(kind):  # type: ignore[arg-type]
        value = cell.read(row if cell.key is None else row.get(cell.key))
        values[cell.name] = cell.default() if value is None else value
    return kind(**values)


@cache
def cells(kind: Any) -> tuple[Cell, ...]:
    """How each field of a dataclass is stored."""
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    return tuple(_cell(field, hints[field.name]) for field in fields if not field.metadata.get("unstored"))


def _cell(field: dataclasses.Field[Any], hint: Any) -> Cell:
    key = None if field.metadata.get("flat") else field.metadata.get("key") or field.name
    return Cell(field.name, key, bool(field.metadata.get("sparse")), _default(field, hint), _reader(hint))


def _default(field: dataclasses.Field[Any], hint: Any) -> Callable[[], Any]:
    if type(None) in get_args(hint):
        return lambda: None
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    value = _MISSING.get(hint) if field.default is dataclasses.MISSING else field.default
    return lambda: value


def _reader(hint: Any) -> Callable[[Any], Any]:
    """What reads a value of a declared type: None where it has another one."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _reader(next(kind for kind in arguments if kind is not type(None)))
    if origin is Literal:
        return as_text_or_none
    if origin is list:
        return _list_reader(_reader(arguments[0]))
    if origin is dict:
        return _dict_reader(_reader(arguments[1]))
    return lambda value: from_row(hint, value) if isinstance(value, Mapping) else None


def _list_reader(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def items(value: Any) -> Any:
        found = [read(item) for item in value] if isinstance(value, list) else None
        return found if found is None else [item for item in found if item is not None]

    return items


def _dict_reader(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def items(value: Any) -> Any:
        found = {str(key): read(item) for key, item in value.items()} if isinstance(value, Mapping) else None
        return found if found is None else {key: item for key, item in found.items() if item is not None}

    return items


def as_float(value: Any) -> float | None:
    """A number from a file, or None where there is none (other text, null, a flag)."""
    if type(value) is float:  # nearly always; a long run has millions
        return value
    if isinstance(value, str):
        return _NONFINITE.get(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return None


def as_int(value: Any) -> int | None:
    """A count or place; None also for what is too large to count exactly."""
    known = as_float(value)
    return int(known) if known is not None and abs(known) < _EXACT else None


def as_text(value: Any, default: str = "") -> str:
    """Text from a file, or the default where there is none."""
    return value if isinstance(value, str) else default


def as_text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _as_flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    float: as_float,
    int: as_int,
    str: as_text_or_none,
    bool: _as_flag,
    Any: lambda value: value,
}


def strict(value: Any) -> Any:
    """A copy that strict JSON can hold: floats that are not finite as text, records as rows."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Row):
        return value.to_row()
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value


class JsonlWriter:
    """Appends rows to a file of JSON lines; each row is with the operating system when ``write`` returns.

    Opened on a file whose last line was cut short by a kill or a full disk, it starts a new line: only the
    cut row is lost.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8", newline="\n", buffering=1)
        if not _ends_with_newline(self.path):
            self._file.write("\n")

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row, as strict JSON."""
        self._file.write(json.dumps(strict(row), allow_nan=False, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
