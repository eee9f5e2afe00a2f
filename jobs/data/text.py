"""The sources of text: a file or folder of the user's, or documentation that every machine has."""

from __future__ import annotations

import gzip
import logging
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from jobs.data.errors import DataError
from jobs.spec.data import DataSpec

_log = logging.getLogger(__name__)

LICENSES, DOCUMENTS = Path("/usr/share/common-licenses"), Path("/usr/share/doc")
_DOCUMENT_NAMES = ("copyright", "readme", "news", "faq", "todo")
_DOCUMENT_SUFFIXES = (".txt", ".md", ".rst")
_ENOUGH_BYTES = 1 << 20
_MOST_BYTES = 8 << 20
_IGNORED = ("site-packages", "dist-packages", "__pycache__")
_HELD_OUT = ("test", "val", "valid", "validation")


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
    if config.path is not None:
        return _given(Path(config.path).expanduser(), config.holdout)
    texts, source = _system(config.corpus)
    return _cut(texts, config.holdout, source)


def _given(path: Path, holdout: float) -> Corpus:
    if not path.exists():
        raise DataError(
            f"data.path: there is no file or folder {path}: name one that every worker sees, "
            "or leave it out and train on the text of this machine"
        )
    apart = [path / name for name in _HELD_OUT if (path / name).is_dir()]
    if (path / "train").is_dir() and apart:
        return Corpus(_texts_of(path / "train"), _texts_of(apart[0]), str(path))
    return _cut(_texts_of(path), holdout, str(path))


def _texts_of(path: Path) -> list[bytes]:
    files = [path] if path.is_file() else _files_below(path)
    texts = [text for file in files if (text := _read(file))]
    if not texts:
        raise DataError(f"data.path: there is no text in {path}: it takes UTF-8 files, gzipped or not")
    if len(texts) < len(files):
        _log.warning("data: %d of %d files in %s are no text", len(files) - len(texts), len(files), path)
    return texts


def _files_below(folder: Path) -> list[Path]:
    """All files but hidden ones and installed packages, in an order that no file system changes."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _IGNORED]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted((file for file in found if file.is_file()), key=lambda file: file.parts)


def _system(corpus: str) -> tuple[list[bytes], str]:
    if corpus != "python":
        texts = _limited(chain(_files_below(LICENSES), filter(_is_document, _files_below(DOCUMENTS))))
        if corpus == "debian" or sum(map(len, texts)) >= _ENOUGH_BYTES:
            if not texts:
                raise DataError(f"data.corpus = debian: there is no text in {DOCUMENTS}: write python")
            return texts, "the documents of this system"
    library = _files_below(Path(sysconfig.get_path("stdlib")))
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


def _read(file: Path) -> bytes:
    """The content of a text file; empty if it is not text or cannot be read."""
    try:
        content = file.read_bytes()
        text = gzip.decompress(content) if file.suffix == ".gz" else content
        text.decode("utf-8")
    except (OSError, EOFError, ValueError):
        return b""
    return b"" if b"\0" in text else text


def _cut(texts: list[bytes], holdout: float, source: str) -> Corpus:
    """Holds out the end of every text, from the beginning of a line on where it has lines."""
    halves = [_halves(text, int(len(text) * (1 - holdout))) for text in texts]
    return Corpus([train for train, _ in halves if train], [test for _, test in halves if test], source)


def _halves(text: bytes, place: int) -> tuple[bytes, bytes]:
    """Cut where the line at a place begins; where there are no lines, where its UTF-8 character begins."""
    line = text.rfind(b"\n", 0, place) + 1
    while not line and place > 0 and (text[place] & 0xC0) == 0x80:
        place -= 1
    return text[: line or place], text[line or place :]
