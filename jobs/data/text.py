"""The sources of text: a file or folder of the user's, or documentation that every machine has."""

from __future__ import annotations

import codecs
import gzip
import logging
import sysconfig
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.data.errors import DataError
from jobs.data.files import HELD_OUT, TABLES, TRAIN, files_below, partners, why_no_text
from jobs.run_dir.strays import IGNORED, hidden
from jobs.spec.data import DataSpec

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

LICENSES, DOCUMENTS = Path("/usr/share/common-licenses"), Path("/usr/share/doc")
_DOCUMENT_NAMES = ("copyright", "readme", "news", "faq", "todo")
_DOCUMENT_SUFFIXES = (".txt", ".md", ".rst")
_ENOUGH_BYTES = 1 << 20
_MOST_BYTES = 8 << 20
_IGNORED = ("site-packages", "dist-packages", *IGNORED)
_HELD_OUT = sorted(HELD_OUT, key=lambda name: not name.startswith("test"))
"""Where there are several, the test set is held out."""
_SLACK = 0.1
"""A text is cut at a line, else at a space, if there is one within this part of what is held out."""
_SHORTEST = 8
"""Bytes of a text that are held out, at least."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts to train on, and texts held out for evaluation; UTF-8."""

    train: list[bytes]
    test: list[bytes]
    source: str


def load_text(config: DataSpec) -> Corpus:
    """The text of a spec, in an order that depends on the files alone.

    Raises:
        DataError: there is no such file or folder, or no text in it.
    """
    if config.path is not None and config.columns.text is not None:
        return _from_table(Path(config.path).expanduser(), config.columns.text, config.holdout)
    if config.path is not None:
        return _given(Path(config.path).expanduser(), config.holdout)
    texts, source = _system(config.corpus)
    return _cut(texts, config.holdout, source)


def _from_table(path: Path, column: str, holdout: float) -> Corpus:
    """A column of a table; its empty rows are left out."""
    from jobs.data.tables import read_splits  # imports pyarrow

    train, test = (_joined(table, column, path) for table in read_splits(path, "data.path", [column]))
    return Corpus(train, test, str(path)) if test else _cut(train, holdout, str(path))


def _joined(table: pa.Table | None, column: str, path: Path) -> list[bytes]:
    if table is None:
        return []
    values = [value for value in table.column(column).to_pylist() if value is not None and value != ""]
    wrong = next((value for value in values if not isinstance(value, str)), None)
    if wrong is not None or not values:
        found = "is empty" if wrong is None else f"has {type(wrong).__name__} {str(wrong)[:40]!r}, not text"
        raise DataError(f"{path}: column {column!r} {found}: set data.columns.text to one with text")
    return ["\n\n".join(values).encode()]


def _given(path: Path, holdout: float) -> Corpus:
    if not path.exists():
        raise DataError(
            f"data.path: there is no file or folder {path}: name one that every worker sees, "
            "or leave it out and train on the text of this machine"
        )
    if path.is_dir() and (found := _split(path)):
        train, test = (_texts_of(files, path) for files in found)
        return Corpus(train, test, str(path))
    return _cut(_texts_of(_files(path), path), holdout, str(path))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else files_below(path, ignored=_IGNORED)


def _split(path: Path) -> tuple[list[Path], list[Path]] | None:
    """Folders or files that name their split, as ``wiki.train.tokens`` and ``wiki.test.tokens`` do."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not hidden(p.name))
    for found in (folders, _files(path)):
        splits = partners(item.name for item in found)
        if splits:
            held_out = next(name for name in _HELD_OUT if name in splits.values())
            others = [item.name for item in found if item.name not in splits]
            if others:
                named = ", ".join(others[:_NAMED]) + (" and more" if len(others) > _NAMED else "")
                _log.warning("data: left out, since they name no split as others do: %s in %s", named, path)
            return (
                [file for item in found if splits.get(item.name) in TRAIN for file in _files(item)],
                [file for item in found if splits.get(item.name) == held_out for file in _files(item)],
            )
    return _split(folders[0]) if len(folders) == 1 and not folders[0].is_symlink() else None


def _texts_of(files: list[Path], source: Path) -> list[bytes]:
    texts: list[bytes] = []
    left_out: list[str] = []
    for file in files:
        try:
            texts.append(_text(file))
        except _NoText as reason:
            left_out.append(f"{file}: {reason}")
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"data.path: {file} cannot be read: {error}") from None
    texts = [text for text in texts if text]
    more = f"; and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    reasons = "; ".join(left_out[:_NAMED]) + more
    advice = _of_tables(files)
    if not texts:
        raise DataError(
            f"data.path: there is no text in {source}: it takes UTF-8 files, gzipped or not"
            + (f" ({reasons})" if reasons else "")
            + (f"; {advice}" if advice else "")
        )
    if advice:
        _log.warning("data: %s is trained on as it is, with names and separators: %s", source, advice)
    if left_out:
        _log.warning("data: left out, since it is no text: %s", reasons)
    return texts


def _of_tables(files: Sequence[Path]) -> str:
    """What to do where all files are tables; empty if not."""
    suffixes = {Path(file.name.lower().removesuffix(".gz")).suffix for file in files}
    return (
        "data.columns: {text: COLUMN} reads a column of a table" if suffixes and suffixes <= {*TABLES} else ""
    )


def _system(corpus: str) -> tuple[list[bytes], str]:
    if corpus != "python":
        texts = _limited(chain(_files(LICENSES), filter(_is_document, _files(DOCUMENTS))))
        if corpus == "debian" or sum(map(len, texts)) >= _ENOUGH_BYTES:
            if not texts:
                raise DataError(f"data.corpus = debian: there is no text in {DOCUMENTS}: write python")
            return texts, "the documents of this system"
    library = _files(Path(sysconfig.get_path("stdlib")))
    sources = (file for file in library if file.suffix == ".py")
    return _limited(sources), "the sources of Python's standard library"


def _is_document(file: Path) -> bool:
    name = file.name.lower().removesuffix(".gz")
    return name.startswith(_DOCUMENT_NAMES) or name.endswith(_DOCUMENT_SUFFIXES)


def _limited(files: Iterable[Path]) -> list[bytes]:
    """Texts of the first files, each content once, up to a size that is read in a moment."""
    texts: dict[bytes, None] = {}
    room = _MOST_BYTES
    for text in map(_read, files):
        if text and text not in texts:
            texts[text] = None
            room -= len(text)
        if room <= 0:
            break
    return list(texts)


class _NoText(ValueError):
    """A file is not UTF-8 text: says what it is."""


def _text(file: Path) -> bytes:
    content = file.read_bytes()
    zipped = file.suffix.lower() == ".gz"
    if zipped and not content:
        raise EOFError("it is empty, which no gzip file is")
    text = gzip.decompress(content) if zipped else content
    if reason := why_no_text(text):
        raise _NoText(reason)
    return text.removeprefix(codecs.BOM_UTF8)


def _read(file: Path) -> bytes:
    """The content of a text file; empty if it is not text or cannot be read."""
    try:
        return _text(file)
    except (OSError, EOFError, ValueError, zlib.error):
        return b""


def _cut(texts: list[bytes], holdout: float, source: str) -> Corpus:
    """Holds out the end of every text; of texts that are too short for that, whole ones, as evenly."""
    train, test, owed = [], [], 0.0
    for text in texts:
        if len(text) * holdout >= _SHORTEST:
            first, last = _halves(text, holdout)
        else:
            owed += len(text) * holdout
            first, last = (b"", text) if owed >= len(text) else (text, b"")
            owed -= len(last)
        train.append(first)
        test.append(last)
    return Corpus([text for text in train if text], [text for text in test if text], source)


def _halves(text: bytes, holdout: float) -> tuple[bytes, bytes]:
    """Cut where a line begins near the place, else a word, else a UTF-8 character."""
    place = int(len(text) * (1 - holdout))
    nearest = max(0, place - int(_SLACK * holdout * len(text)))
    cut = max(text.rfind(b"\n", nearest, place), 0) or max(text.rfind(b" ", nearest, place), 0)
    if cut:
        return text[: cut + 1], text[cut + 1 :]
    while place > 0 and (text[place] & 0xC0) == 0x80:
        place -= 1
    return text[:place], text[place:]
