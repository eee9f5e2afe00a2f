"""Tokens are made once for a text and a tokenizer, by one of the processes, and again if damaged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from numpy.typing import NDArray

from jobs.data.token_cache import cache_folder, encoded
from jobs.data.tokens import Bytes, TokenizerFile, Windows
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload
from tests.guard.ranks import on_ranks

TEXTS = [b"one two two three\n" * 50, "grün\n".encode() * 20]


class Noted:
    """Bytes with an identity, that leaves a mark in a folder each time it encodes."""

    size, dropped = 256, ""

    def __init__(self, marks: Path, identity: bytes = b"noted") -> None:
        self._marks = marks
        self.identity: bytes | None = identity

    def encode(self, texts: Sequence[bytes]) -> NDArray[Any]:
        number = sum(1 for _ in self._marks.iterdir())
        (self._marks / f"{number}").touch(exist_ok=False)
        return Bytes().encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return Bytes().decode(ids)


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def made(marks: Path) -> int:
    return len(list(marks.iterdir()))


def kept() -> list[Path]:
    return sorted(path for path in cache_folder().rglob("*") if path.is_file())


def test_the_second_start_maps_the_tokens_of_the_first(marks: Path):
    expected = Bytes().encode(TEXTS)
    first, second = (encoded(Noted(marks), TEXTS) for _ in range(2))
    assert made(marks) == 1
    assert np.array_equal(first, expected)
    assert np.array_equal(second, expected)
    assert second.dtype == expected.dtype
    assert isinstance(second.base, np.memmap), "not read before it is used"
    assert Windows(second, 16).batch(np.arange(3)).shape == (3, 17)
    assert [path.name for path in kept()] == ["ids.npy"]


def test_another_text_another_cut_or_another_tokenizer_has_tokens_of_its_own(marks: Path):
    encoded(Noted(marks), TEXTS)
    moved = [TEXTS[0][:-1], TEXTS[0][-1:] + TEXTS[1]]
    for tokenizer, texts in ((Noted(marks), TEXTS[:1]), (Noted(marks), moved), (Noted(marks, b"x"), TEXTS)):
        assert np.array_equal(encoded(tokenizer, texts), Bytes().encode(texts))
    assert made(marks) == 4


def test_bytes_are_their_own_tokens_and_nothing_is_kept(marks: Path):
    assert np.array_equal(encoded(Bytes(), TEXTS), Bytes().encode(TEXTS))
    assert not cache_folder().exists()
    assert made(marks) == 0


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", b"no array at all", None])
def test_a_file_that_is_damaged_or_cut_is_replaced(
    marks: Path, caplog: pytest.LogCaptureFixture, damage: bytes | None
):
    encoded(Noted(marks), TEXTS)
    (path,) = kept()
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-100] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(encoded(Noted(marks), TEXTS), Bytes().encode(TEXTS))
    assert "is damaged" in caplog.text
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_no_job(
    marks: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (marks.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(marks.parent / "file"))
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(encoded(Noted(marks), TEXTS), Bytes().encode(TEXTS))
    assert "cannot cache tokens" in caplog.text


def start(rank: int, world_size: int, folder: Path) -> int:
    dist.barrier()
    return int(encoded(Noted(folder / "marks"), TEXTS).astype(np.int64).sum())


def test_ranks_that_start_at_once_make_the_tokens_once(marks: Path):
    sums = on_ranks(3, start, marks.parent)
    assert sums == [int(Bytes().encode(TEXTS).astype(np.int64).sum())] * 3
    assert made(marks) == 1
    assert [path.name for path in kept()] == ["ids.npy"]


def test_a_job_with_a_tokenizer_file_starts_from_the_kept_tokens(marks: Path, tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    (tmp_path / "book.txt").write_bytes(TEXTS[0] * 4)
    spec = JobSpec.from_dict(
        {
            "workload": "language",
            "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 8, "context": 8},
            "data": {"path": str(tmp_path / "book.txt"), "tokenizer": str(tmp_path / "words.json")},
        }
    )
    first, second = load_workload(spec), load_workload(spec)
    assert len(kept()) == 2, "those to train on, and those held out"
    ids = np.arange(4)
    assert first.train_batch(ids, 0, "cpu").tolist() == second.train_batch(ids, 0, "cpu").tolist()
    assert first.fingerprint == second.fingerprint
    other = TokenizerFile(tmp_path / "words.json")
    (tmp_path / "words.json").write_text((tmp_path / "words.json").read_text() + "\n")
    assert TokenizerFile(tmp_path / "words.json").identity != other.identity
