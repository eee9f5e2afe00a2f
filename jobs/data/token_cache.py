"""A cache of token ids in files: only the first start of a job tokenizes.

``<cache>/gradguard/tokens/<key>/ids.npy``, where ``<cache>`` is ``XDG_CACHE_HOME`` or ``~/.cache``, and the
key is the content of the texts and of the tokenizer. All of it may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.data.tokens import Tokenizer
from jobs.run_dir.jsonl import sync

_log = logging.getLogger(__name__)

_FORMAT = b"gradguard tokens 3"
"""Part of the key; increase the number when ``Tokenizer.encode`` gives different ids or notes."""
_DROPPED = "dropped.txt"


def cache_folder() -> Path:
    """The folder of the cache."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "gradguard" / "tokens"


def encoded(tokenizer: Tokenizer, texts: Sequence[bytes]) -> NDArray[Any]:
    """``tokenizer.encode(texts)``: mapped from a file if there is one, else computed and stored.

    Processes that start together tokenize once: the others wait. A truncated or damaged file is replaced; if
    the folder cannot be written, the ids are computed at every start. Characters that the tokenizer drops are
    a warning at every start.
    """
    if tokenizer.identity is None:
        return tokenizer.encode(texts)
    tokens, dropped = _kept_or_encoded(tokenizer, tokenizer.identity, texts)
    if dropped:
        _log.warning("data: data.tokenizer %s", dropped)
    return tokens


def _kept_or_encoded(
    tokenizer: Tokenizer, identity: bytes, texts: Sequence[bytes]
) -> tuple[NDArray[Any], str]:
    """The ids, and what was dropped when they were made."""
    path = cache_folder() / _key(identity, texts) / "ids.npy"
    with _locked(path.parent) as usable:
        found = _mapped(path) if usable else None
        if found is not None:
            return found, _note(path)
        tokens = tokenizer.encode(texts)
        kept = _mapped(path) if usable and _keep(path, tokens, tokenizer.dropped) else None
        return (tokens if kept is None else kept), tokenizer.dropped


def _key(identity: bytes, texts: Sequence[bytes]) -> str:
    digest = hashlib.sha256(_FORMAT + identity)
    for text in texts:
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.hexdigest()[:40]


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Locks a folder for the block; False where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        _log.warning("data: cannot cache tokens in %s: %s", folder.parent, error.strerror)
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: each process tokenizes, with equal results
            _log.info("data: %s has no locks", folder.parent)
        yield True
    finally:
        os.close(descriptor)


def _mapped(path: Path) -> NDArray[Any] | None:
    """The ids in a file, memory-mapped; None where there is no complete one."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        _log.warning("data: %s is damaged (%s): it is replaced", path, error)
        return None
    return np.asarray(found) if found.ndim == 1 else None


def _note(path: Path) -> str:
    """What was dropped when these ids were made."""
    try:
        return path.with_name(_DROPPED).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _keep(path: Path, tokens: NDArray[Any], dropped: str) -> bool:
    """Writes the file atomically: one that another process has mapped keeps its content."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if dropped:  # before the ids: whoever finds these finds the note
            path.with_name(_DROPPED).write_text(dropped, encoding="utf-8")
        with temporary.open("wb") as file:
            np.save(file, tokens, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        _log.warning("data: cannot cache tokens in %s: %s", path.parent, error.strerror)
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
