import json
import math
from pathlib import Path

import pytest

from guard.rows import JsonlWriter
from jobs.run_dir.jsonl import (
    GrowingRows,
    cut_back,
    iter_jsonl,
    read_json,
    write_json_atomic,
    write_text_atomic,
)


def test_missing_file_has_no_rows(tmp_path):
    assert [*iter_jsonl(tmp_path / "metrics.jsonl")] == []
    assert read_json(tmp_path / "result.json") is None


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    rows = [{"step": 1, "loss": 0.5, "layers": {"fc": 1.0}}, {"step": 2, "note": "größer\n<b>"}]
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)
    assert [*iter_jsonl(path)] == rows
    assert list(iter_jsonl(path)) == rows


def test_a_row_is_readable_before_the_writer_is_closed(tmp_path):
    with JsonlWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write({"step": 1})
        assert [*iter_jsonl(writer.path)] == [{"step": 1}]


def test_a_row_is_strict_json_and_read_as_it_is_stored(tmp_path):
    with JsonlWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write({"loss": math.nan, "norms": [math.inf, -math.inf, 1.0], "job": "nan"})
    json.loads(writer.path.read_text(), parse_constant=pytest.fail)
    assert [*iter_jsonl(writer.path)] == [{"loss": "nan", "norms": ["inf", "-inf", 1.0], "job": "nan"}]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_cut_last_line_costs_only_that_row(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1}\n'
    last = '{"step": 2, "text": "ä", "loss": "nan"}\n'.encode()
    path.write_bytes(whole + last[: min(cut, len(last) - 2)])
    assert [*iter_jsonl(path)] == [{"step": 1}]


def test_a_writer_that_follows_a_cut_line_starts_a_new_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    with JsonlWriter(path) as writer:
        writer.write({"step": 3})
    assert [*iter_jsonl(path)] == [{"step": 1}, {"step": 3}]


def test_a_writer_that_follows_a_complete_line_adds_no_empty_one(tmp_path):
    for step in (1, 2):
        with JsonlWriter(tmp_path / "metrics.jsonl") as writer:
            writer.write({"step": step})
    assert writer.path.read_bytes() == b'{"step":1}\n{"step":2}\n'


@pytest.mark.parametrize("line", [b"", b"[1, 2]", b"7", b'{"a": NaN', b"\xff\xfe", b"[" * 200_000])
def test_a_line_that_is_no_object_is_ignored(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b'\n{"step": 1}\n')
    assert [*iter_jsonl(path)] == [{"step": 1}]


def test_documents_are_replaced_whole_and_leave_nothing_behind(tmp_path):
    path = tmp_path / "job" / "result.json"
    write_json_atomic(path, {"status": "stopped", "metrics": {"test_loss": math.nan}})
    write_json_atomic(path, {"status": "succeeded"})
    assert read_json(path) == {"status": "succeeded"}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_document_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "result.json"
    write_json_atomic(path, {"status": "succeeded"})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"status": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "\ud800")
    assert read_json(path) == {"status": "succeeded"}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_rows_that_come_again_are_kept_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert cut_back(path, 0) == 0
    path.write_bytes(b"one\ntwo\nthr")
    assert cut_back(path, 4) == 7
    assert cut_back(path, 4) == 0
    assert path.read_bytes() == b"one\n"
    assert (tmp_path / "rows.rolled_back.jsonl").read_bytes() == b"two\nthr"


def test_a_file_that_was_cut_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    growing = GrowingRows(path)
    assert not growing.restarted()
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert growing.restarted()
    assert growing.rows() == []
    path.write_text('{"a": 1}\n')
    assert growing.restarted(), "it was cut back, as a resumed job does"
    with path.open("a") as file:
        file.write('{"a": 3}\n')
    assert not growing.restarted()
    assert growing.rows() == [{"a": 3}]
