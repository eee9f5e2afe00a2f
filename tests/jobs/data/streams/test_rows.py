"""What is read from a stream is what is in its files, in bounded memory, wherever the training goes."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from jobs.checkpoints.data_match import other_data
from jobs.data.errors import DataError, SampleError
from jobs.data.streams import formats
from jobs.data.streams.formats import Columns
from jobs.data.streams.rows import StreamRows, load_stream
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload, make_cursor
from tests.jobs.data.streams.stream_fixture import rows, spec_of, tar, write

CPU = torch.device("cpu")
COLUMNS = Columns("label", ("x", "text"), ("text",))


def stored(root: Path, columns: Columns = COLUMNS, **data: Any) -> tuple[StreamRows, StreamRows]:
    workload = "tabular" if data.get("dataset", "table") == "table" else "vision"
    return load_stream(spec_of(root, workload=workload, data=data).data, columns)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_row_is_found_by_its_number_in_files_of_every_kind(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_TEXT_BYTES", 256)  # some rows each
    first, second, held_out = rows(60), rows(37, first=60), rows(9, first=200)
    write(tmp_path / f"train-0.{kind}", first)
    write(tmp_path / f"train-1.{kind}", second)
    write(tmp_path / f"val.{kind}", held_out)
    train, test = stored(tmp_path)
    assert len(train.index.blocks) >= 10
    assert (len(train), len(test), train.classes) == (97, 9, ("a", "b", "c"))
    ids = np.random.default_rng(0).permutation(97)[:50]
    expected = [[*first, *second][n] for n in ids]
    content = train.content(ids).to_pylist()
    assert content == [{"x": row["x"], "text": row["text"]} for row in expected]
    assert [train.classes[n] for n in train.labels[torch.from_numpy(ids)]] == [r["label"] for r in expected]
    assert test.content(np.arange(9)).column("x").to_pylist() == [row["x"] for row in held_out]
    assert train.place(60) == f"{tmp_path}/train-1.{kind}: row 1"


def test_samples_of_tars_are_found_by_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_TAR_BYTES", 4000)
    long = "folder/" * 20
    files = {
        f"{long}{n:03}.{kind}": content
        for n in range(20)
        for kind, content in (("png", bytes([n]) * (300 + n)), ("cls", str(n % 2).encode()))
    }
    tar(tmp_path / "train-0.tar", files)
    tar(tmp_path / "val-0.tar", dict(islice(files.items(), 4)))
    train, test = stored(tmp_path, Columns("label", ("image",)), dataset="webdataset")
    assert len(train.index.blocks) > 3
    assert (len(train), len(test), train.classes) == (20, 2, ("0", "1"))
    ids = np.array([19, 0, 7, 8])
    assert train.content(ids).column("image").to_pylist() == [bytes([n]) * (300 + n) for n in ids.tolist()]
    assert train.labels[torch.from_numpy(ids)].tolist() == [1, 0, 1, 0]


def batches(workload: Any, cursor: Any, count: int) -> list[list[float]]:
    found = (cursor.next_batch() for _ in range(count))
    return [workload.train_batch(batch.ids, batch.epoch, CPU)[0].flatten().tolist() for batch in found]


def test_reading_ahead_changes_no_batch_and_holds_the_blocks_of_a_window(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", rows(800))
    write(tmp_path / "val.parquet", rows(20))
    spec = spec_of(tmp_path, data={"stream": {"shuffle_rows": 32, "lanes": 2}})
    plain, ahead = load_workload(spec), load_workload(spec)
    expected = batches(plain, make_cursor(plain, spec), 250)
    cursor = make_cursor(ahead, spec)
    ahead.read_ahead(cursor, 0, 1, CPU)
    reader, most, found = ahead._stream.reader, 0, []
    for _ in range(250):
        found += batches(ahead, cursor, 1)
        most = max(most, len(reader._held))
    assert found == expected
    blocks_of_a_lane = 16 // 10 + 2
    assert most <= 2 * (blocks_of_a_lane + 1), "of 80"


def test_a_batch_is_the_same_after_a_rollback_and_when_a_part_is_computed_again(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", rows(400))
    write(tmp_path / "val.parquet", rows(20))
    spec = spec_of(tmp_path, data={"stream": {"shuffle_rows": 32}})
    workload = load_workload(spec)
    cursor = make_cursor(workload, spec)
    workload.read_ahead(cursor, 0, 1, CPU)
    saved = cursor.state_dict()
    expected = batches(workload, cursor, 120)
    for start in (0, 47):
        cursor.load_state_dict({**saved, "epoch": start // 50, "index": start % 50})
        assert batches(workload, cursor, 120 - start) == expected[start:]
    part = workload.train_batch(cursor.last_ids[2:5], 0, CPU)[0].flatten().tolist()
    assert part == expected[-1][2:5], "exclude_samples computes parts of the present batch"
    workload.close()
    assert not workload._stream.reader._held


def test_two_ranks_read_the_halves_of_the_batch_of_one(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", rows(200))
    write(tmp_path / "val.parquet", rows(20))
    spec = spec_of(tmp_path, train={"micro_batches": 2})
    whole = load_workload(spec)
    expected = batches(whole, make_cursor(whole, spec), 60)
    for rank in range(2):
        own = load_workload(spec)
        cursor = make_cursor(own, spec)
        own.read_ahead(cursor, rank, 2, CPU)
        for batch in expected:
            ids = cursor.next_batch().ids[rank * 4 : rank * 4 + 4]
            halves = [own.train_batch(half, cursor.epoch, CPU)[0] for half in (ids[:2], ids[2:])]
            assert torch.cat(halves).flatten().tolist() == batch[rank * 4 : rank * 4 + 4]


def test_without_named_files_whole_blocks_are_held_out(tmp_path: Path) -> None:
    write(tmp_path / "all.parquet", rows(200))
    train, test = stored(tmp_path)
    assert (len(train), len(test)) == (180, 20)
    numbers = [set(split.content(np.arange(len(split))).column("x").to_pylist()) for split in (train, test)]
    assert not numbers[0] & numbers[1]
    assert {int(x) // 10 for x in numbers[0]}.isdisjoint({int(x) // 10 for x in numbers[1]})
    assert len(train.chosen(torch.tensor([5, 3, 170]))) == 3


def test_other_rows_have_another_fingerprint(tmp_path: Path) -> None:
    content = rows(50)
    for kind in ("parquet", "csv"):
        root = tmp_path / kind
        for split in ("train", "val"):
            write(root / f"{split}.{kind}", content)
        before = stored(root)[0].fingerprint()
        assert before == stored(root)[0].fingerprint()
        write(root / f"train.{kind}", [*content[:20], {**content[20], "x": 99.0}, *content[21:]])
        after = stored(root)[0].fingerprint()
        saved, now = ({"samples": 50, "fingerprint": text} for text in (before, after))
        refused = other_data(saved, now, step=7) or "none"
        assert refused.endswith(f"checkpoint of step 7: {before} then, {after} now")


def test_a_file_that_changes_or_breaks_in_the_midst_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", rows(50))
    write(tmp_path / "val.parquet", rows(10))
    train, _ = stored(tmp_path)
    write(path, rows(50), block=5)
    with pytest.raises(
        SampleError, match=r"train.parquet: changed since the job started: a block has 5 rows"
    ):
        train.content(np.array([0]))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SampleError, match=r"train.parquet: cannot be read: Parquet magic bytes not found"):
        train.content(np.array([0]))
    with pytest.raises(DataError, match=r"train.parquet: cannot be read: "):
        stored(tmp_path)
    path.unlink()
    with pytest.raises(SampleError, match=r"train.parquet: cannot be read: .*No such file"):
        train.content(np.array([0]))


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("train.csv", "a,b\n1,2\n", "train.csv: cannot be read: there is no column 'x'; it has a, b"),
        ("train.csv", "x,text,label\n1,u,a\n2,v,\n", "train.csv: bytes 13 to 24 has a row without label"),
        ("train.csv", "x,text,label\n1,u,a\n2,v,a\n", "has the classes a: it takes two or more"),
        ("train.jsonl", '[{"x": 1}]', "it is one array: write JSON lines"),
        ("train.jsonl", '{"x": 1, "text": "u", "label": 1.5}\n', "column 'label' is double"),
        ("train.txt", "x", "has no file that a stream is read from (.parquet, .csv"),
    ],
)
def test_what_cannot_be_streamed_is_one_line(tmp_path: Path, name: str, text: str, line: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as refused:
        stored(tmp_path)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_numbers_are_classes_and_stand_for_the_names_of_a_class_label(tmp_path: Path) -> None:
    def labelled(split: str, labels: list[int], metadata: dict[str, str] | None = None) -> None:
        table = pa.table({"x": [float(n) for n in range(len(labels))], "label": labels})
        coded = table.set_column(1, "label", table.column("label").dictionary_encode())
        one = coded if split == "val" and metadata is None else table
        pa.parquet.write_table(
            one.replace_schema_metadata(metadata), tmp_path / f"{split}.parquet", row_group_size=4
        )

    columns = Columns("label", ("x",))
    labelled("train", [10, 2, 2, 10, 3, 10])
    labelled("val", [3, 2, 10])
    train, test = stored(tmp_path, columns)
    assert train.classes == test.classes == ("2", "3", "10")
    assert train.labels.tolist() == [2, 0, 0, 2, 1, 2]
    assert test.labels.tolist() == [1, 0, 2]

    features = {"label": {"names": ["cat", "dog", "owl"]}}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    labelled("train", [1, 0, 0, 1], described)
    labelled("val", [2, 1], described)
    train, test = stored(tmp_path, columns)
    assert train.classes == ("cat", "dog", "owl")
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 0, 0, 1], [2, 1])
    labelled("val", [0, -1], described)
    with pytest.raises(
        DataError, match=r"val.parquet: row group 0: label -1 is no class of the training data"
    ):
        stored(tmp_path, columns)


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root = .*nowhere: there is no such file or folder"):
        stored(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data.root = nosuch://place/rows: Protocol not known"):
        load_stream(spec_of(tmp_path, data={"root": "nosuch://key:secret@place/rows"}).data, COLUMNS)


def test_files_of_several_kinds_are_refused_and_others_ignored(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.parquet", rows(20))
    write(tmp_path / "data" / "val.parquet", rows(5))
    write(tmp_path / ".cache" / "train.parquet", rows(5))
    (tmp_path / "dataset_info.json").write_text("{}")
    assert len(stored(tmp_path)[0]) == 20
    write(tmp_path / "more.csv", rows(5))
    with pytest.raises(DataError, match=r"has .csv and .parquet files: give each kind a folder of its own"):
        stored(tmp_path)


def test_a_label_that_no_training_row_has_and_a_number_that_is_none_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [*rows(9), {"x": "inf", "text": "", "label": "a"}])
    write(tmp_path / "val.csv", [{"x": 1, "text": "", "label": "z"}])
    with pytest.raises(
        DataError, match=r"val.csv: .* label 'z' is no class of the training data \(a, b, c\)"
    ):
        stored(tmp_path)
    write(tmp_path / "val.csv", rows(3))
    with pytest.raises(SampleError, match=r"train.csv: row 10: x is not a finite number"):
        load_workload(spec_of(tmp_path))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"dataset": "digits", "root": None}, "is for table and webdataset, and data.dataset is digits"),
        ({"stream": {"lanes": 3}}, "data.stream.lanes = 3: must divide data.batch_size = 8"),
        ({"stream": None, "root": "s3://bucket/rows"}, "only a stream is read from a URL"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(tmp_path: Path, data: dict[str, Any], line: str) -> None:
    with pytest.raises(SpecError) as refused:
        spec_of(tmp_path, data=data)
    assert line in str(refused.value)


def test_windows_of_text_are_not_streamed() -> None:
    spec = {"workload": "language", "data": {"path": "texts", "stream": {}}}
    with pytest.raises(SpecError, match="is for huggingface, and the workload is language: remove it"):
        JobSpec.from_dict(spec)


def test_a_stream_is_read_from_a_url(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("train", "val"):
        content = write(tmp_path / f"{name}.parquet", rows(30)).read_bytes()
        memory.pipe(f"/rows-{tmp_path.name}/{name}.parquet", content)
    train, _ = load_stream(spec_of(tmp_path, data={"root": f"memory://rows-{tmp_path.name}"}).data, COLUMNS)
    assert train.content(np.array([29, 4])).column("x").to_pylist() == [29.0, 4.0]


def test_a_task_that_reads_needs_no_torch() -> None:
    code = "import sys, jobs.data.streams.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
