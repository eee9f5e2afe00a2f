"""Text of the user's own: what is read, what is held out, and what is said of the rest."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import numpy as np
import pytest

from jobs.data import DataError
from jobs.data.text import load_text
from jobs.data.token_cache import encoded
from jobs.data.tokens import TokenizerFile
from jobs.spec.job_spec import DataSpec

tokenizers = pytest.importorskip("tokenizers")

LINE = "The quick brown fox jumps over the lazy dog. "


def spec(path: Path, holdout: float = 0.05) -> DataSpec:
    return DataSpec(path=str(path), holdout=holdout)


@pytest.mark.parametrize("long_line", [LINE * 1000, "x" * 40_000, "\u00e9" * 20_000])
def test_the_held_out_share_is_as_asked_whatever_the_lines(tmp_path: Path, long_line: str):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"A title\n{long_line}\n")
    corpus = load_text(spec(tmp_path))
    train, test = (sum(map(len, texts)) for texts in (corpus.train, corpus.test))
    assert 0.05 <= test / (train + test) <= 0.056
    for text in corpus.train + corpus.test:
        text.decode("utf-8")


def test_files_that_name_their_split_are_split_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("train", "valid", "test"):
        (tmp_path / f"wiki.{name}.tokens").write_text(f"{name}\n")
    corpus = load_text(spec(tmp_path))
    assert (corpus.train, corpus.test) == ([b"train\n"], [b"test\n"])
    (tmp_path / "notes.txt").write_text("names no split\n" * 50)
    with caplog.at_level(logging.WARNING, "jobs.data"):
        assert load_text(spec(tmp_path)).train == [b"train\n"]
    assert "since they name no split as others do: notes.txt" in caplog.text


@pytest.mark.parametrize(
    ("train", "test"), [("Train/a", "Test/b"), ("train_set/a", "dev/a"), ("TRAIN.TXT", "TEST.TXT")]
)
def test_splits_may_be_spelled_in_any_usual_way(tmp_path: Path, train: str, test: str):
    for name in (train, test):
        (tmp_path / "wiki" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "wiki" / name).write_text(name)
    corpus = load_text(spec(tmp_path))
    assert (corpus.train, corpus.test) == ([train.encode()], [test.encode()])


def test_words_of_splits_in_unlike_names_are_no_splits(tmp_path: Path):
    for name in ("how-to-train-a-dog.txt", "the-test.txt"):
        (tmp_path / name).write_text(LINE * 40)
    assert len(load_text(spec(tmp_path)).train) == 2


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    (tmp_path / "a.txt").write_text(LINE * 40, encoding="utf-8-sig")
    assert load_text(spec(tmp_path)).train[0].startswith(b"The")


def test_a_link_that_leads_nowhere_is_refused_by_name(tmp_path: Path):
    (tmp_path / "a.txt").write_text(LINE * 40)
    (tmp_path / "part1").symlink_to("/mnt/gone")
    with pytest.raises(DataError, match=r"part1 cannot be read: .*No such file"):
        load_text(spec(tmp_path))


def test_linked_folders_are_read_once(tmp_path: Path):
    inside, elsewhere = tmp_path / "text", tmp_path / "elsewhere"
    for folder in (inside, elsewhere):
        folder.mkdir()
        (folder / "a.txt").write_text(LINE * 40)
    (inside / "part").symlink_to(elsewhere)
    (inside / "same").symlink_to(elsewhere)
    (inside / "loop").symlink_to(inside)
    assert len(load_text(spec(inside)).train) == 2


def test_what_is_no_text_is_named_with_its_byte(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "a.txt").write_text(LINE * 40)
    (tmp_path / "b.txt").write_bytes(b"two\nlines caf\xe9\n")
    with caplog.at_level(logging.WARNING, "jobs.data"):
        load_text(spec(tmp_path))
    assert f"{tmp_path / 'b.txt'}: byte 13 (0xe9, in line 2) is not UTF-8" in caplog.text
    with pytest.raises(DataError, match=r"b.txt: byte 13"):
        load_text(spec(tmp_path / "b.txt"))
    (tmp_path / "c.txt").write_bytes(LINE.encode("utf-16"))
    with pytest.raises(DataError, match=r"c.txt: it is UTF-16"):
        load_text(spec(tmp_path / "c.txt"))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b[:20] + b"\xff" * 9 + b[29:], lambda _: b"no"]
)
def test_a_damaged_archive_is_refused_by_name(tmp_path: Path, damage):
    content = gzip.compress(np.random.default_rng(0).bytes(500).hex().encode())
    (tmp_path / "novel.txt.gz").write_bytes(damage(content))
    (tmp_path / "whole.txt").write_text(LINE * 40)
    with pytest.raises(DataError, match=r"novel.txt.gz cannot be read: ") as caught:
        load_text(spec(tmp_path))
    assert "\n" not in str(caught.value)


def saved(path: Path, tokenizer: object) -> TokenizerFile:
    tokenizer.save(str(path / "tokenizer.json"))
    return TokenizerFile(path / "tokenizer.json")


def words(vocabulary: dict[str, int], **more: str) -> object:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, **more))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path):
    made = words({"a": 0, "b": 1, "[PAD]": 2})
    made.enable_truncation(3)
    made.enable_padding(pad_id=2, pad_token="[PAD]", length=20)
    assert saved(tmp_path, made).encode([b"a b a b a", b"b"]).tolist() == [0, 1, 0, 1, 0, 1]


def test_ids_with_gaps_have_room(tmp_path: Path):
    tokenizer = saved(tmp_path, words({"a": 0, "b": 70_000}))
    assert tokenizer.size == 70_001
    assert tokenizer.encode([b"a b"]).tolist() == [0, 70_000]


def test_a_text_with_unknown_tokens_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"data.tokenizer: .*tokenizer.json cannot encode this text"
    ) as caught:
        saved(tmp_path, words({"a": 0}, unk_token="[UNK]")).encode([b"a c"])
    assert "\n" not in str(caught.value)


def byte_pairs(alphabet: str, **more: object) -> object:
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: at for at, letter in enumerate(alphabet)}, [], **more)
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made


def test_characters_that_a_tokenizer_drops_are_counted_at_every_start_from_the_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for start in range(2):
        caplog.clear()
        tokens = encoded(saved(tmp_path, byte_pairs("ab")), [b"ab " * 100 + "é".encode()])
        assert "data.tokenizer drops 1 of 301 characters" in caplog.text
        assert "'é'" in caplog.text
        assert isinstance(tokens.base, np.memmap), f"start {start} maps the file"
    encoded(saved(tmp_path, byte_pairs("ab")), [b"ab " * 100])
    assert caplog.text.count("drops") == 1, "a text of which nothing is dropped"


def test_a_tokenizer_that_drops_much_of_the_text_is_refused(tmp_path: Path):
    tokenizer = saved(tmp_path, byte_pairs("ab"))
    with pytest.raises(DataError, match=r"drops 6 of 11 characters .*: take a tokenizer on bytes") as caught:
        tokenizer.encode(["ab äöü ëïñ".encode() + b"a"])
    assert "\n" not in str(caught.value)


def test_spaces_and_what_has_an_unknown_token_are_not_dropped(tmp_path: Path):
    lower = byte_pairs("ab")
    lower.normalizer = tokenizers.normalizers.Lowercase()
    lowering = saved(tmp_path, lower)
    assert lowering.encode([b"AB  \n ab"]).tolist() == [0, 1, 0, 1]
    on_bytes = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {letter: at for at, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))},
            [],
        )
    )
    on_bytes.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise = saved(tmp_path, on_bytes)
    assert len(bytewise.encode(["aé\n".encode()])) == 4
    unknown = saved(tmp_path, byte_pairs("ab?", unk_token="?"))
    assert len(unknown.encode([b"axyb"])) == 4
    assert [tokenizer.dropped for tokenizer in (lowering, bytewise, unknown)] == [""] * 3


def test_a_table_that_is_read_as_text_is_reported_with_the_field_that_names_its_column(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    advice = "data.columns: {text: COLUMN} reads a column of a table"
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "{LINE}"}}\n' * 50)
    assert load_text(spec(tmp_path)).train
    assert advice in caplog.text
    caplog.clear()
    (tmp_path / "code.py").write_text(LINE)
    assert load_text(spec(tmp_path)).train
    assert not caplog.records, "tables among other files are text like them"
    (tmp_path / "rows.parquet").write_bytes(b"PAR1\0")
    with pytest.raises(DataError, match=r"no text in .*; data\.columns"):
        load_text(spec(tmp_path / "rows.parquet"))
