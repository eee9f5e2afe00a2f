"""Documents of the user's: texts and chats, from text files, tables, JSON lines and saved data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.data.errors import DataError
from jobs.data.text import load_text
from jobs.run_dir.storage import shown
from jobs.spec.data import DataSpec

if TYPE_CHECKING:
    import pyarrow as pa

Chat = list[dict[str, Any]]
"""Messages, each with ``role`` and ``content``, as chat templates take them."""

_COLUMNS = ("messages", "conversations", "text")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}


class Documents(NamedTuple):
    """What to train on, and what is held out, each a text or a chat."""

    train: list[str | Chat]
    test: list[str | Chat]
    source: str


def load_documents(config: DataSpec) -> Documents:
    """The documents of ``data.path``: the rows of a table, or text files, each one document.

    Without a held-out table the last rows are held out, a share of ``data.holdout``.

    Raises:
        DataError: there is none, a column is missing, or a row, numbered from 1, is no text and no chat.
    """
    path = None if config.path is None else Path(config.path).expanduser()
    names = _column_names(path)
    if path is None or names is None:
        corpus = load_text(config.model_copy(update={"columns": type(config.columns)()}))
        own, held_out = (tuple(map(bytes.decode, texts)) for texts in (corpus.train, corpus.test))
        return Documents([*own], [*held_out], corpus.source)
    from jobs.data.tables import read_splits  # imports pyarrow

    column = document_column(config, names)
    tables = read_splits(path, "data.path", [column])
    train, test = (_rows(table, column, path) for table in tables)
    if not test:
        cut = len(train) - max(1, round(len(train) * config.holdout))
        train, test = train[:cut], train[cut:]
    if not train:
        raise DataError(f"data.path: {path} has one row: it takes two, since some are held out")
    return Documents(train, test, str(path))


def document_column(config: DataSpec, names: Sequence[str]) -> str:
    """The column with the documents.

    Raises:
        DataError: none of the names is one.
    """
    column = config.columns.text or next((name for name in _COLUMNS if name in names), None)
    if column is None:
        wanted = f"no column {' or '.join(_COLUMNS)}; it has {', '.join(names)}"
        raise DataError(f"data.path: {shown(config.path or '')} has {wanted}: name one in data.columns.text")
    return column


def _column_names(path: Path | None) -> list[str] | None:
    """The columns of a table; None for text."""
    if path is None:
        return None
    from jobs.data.tables import column_names

    return column_names(path)


def _rows(table: pa.Table | None, column: str, path: Path) -> list[str | Chat]:
    if table is None:
        return []
    rows = enumerate(table.column(column).to_pylist(), 1)
    return [document(value, f"{path}: row {row}", column) for row, value in rows if value]


def document(value: Any, where: str, column: str) -> str | Chat:
    """The content of a cell; ``where`` names it.

    Raises:
        DataError: it is no text and no chat.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise DataError(f"{where}: column {column!r} is neither a text nor a list of messages")
    return [_message(message, where) for message in value]


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """``role`` and ``content``; ``from`` and ``value`` are names for the same."""
    own = {key: value for key, value in message.items() if value is not None}
    role, content = own.pop("role", own.pop("from", None)), own.pop("content", own.pop("value", None))
    if not isinstance(role, str) or (content is None and not own):
        raise DataError(f"{where}: a message needs role and content; this one has {', '.join(message)}")
    return {"role": _ROLES.get(role, role), "content": "" if content is None else content, **own}
