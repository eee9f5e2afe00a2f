"""Images named or contained in a table: every kind of file gives the same; a wrong one is one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from jobs.checkpoints import CheckpointManager
from jobs.data.errors import DataError, SampleError
from jobs.data.sources import load_images
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload
from tests.jobs.training.training_fixture import assert_same_weights, begin, settle

COUNT = 24
LABELS = ["cat", "dog", "cat"]


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def rows(folder: Path) -> pa.Table:
    """The images of a folder, two classes."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        (folder / "images" / f"{number}.png").write_bytes(png(number))
    paths = [f"images/{number}.png" for number in range(COUNT)]
    return pa.table({"image": paths, "label": LABELS * (COUNT // 3), "note": ["a, b"] * COUNT})


def write_csv(table: pa.Table, path: Path, separator: str = ",") -> Path:
    pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter=separator))
    return path


def write_json(table: pa.Table, path: Path, *, lines: bool) -> Path:
    found = table.to_pylist()
    path.write_text("\n".join(map(json.dumps, found)) if lines else json.dumps(found))
    return path


def write_gzip(table: pa.Table, path: Path) -> Path:
    plain = write_csv(table, path.with_name("plain.csv"))
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def write_parquet(table: pa.Table, path: Path) -> Path:
    pyarrow.parquet.write_table(table, path)
    return path


def save_to_disk(table: pa.Table, folder: Path, **state: Any) -> Path:
    """As ``Dataset.save_to_disk`` does: a stream of Arrow batches, and a file that names it."""
    folder.mkdir()
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    files = [{"filename": "data-00000-of-00001.arrow"}]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_indices_files": None, **state}))
    return folder


def spec_of(root: Path, **data: Any) -> JobSpec:
    own = {"dataset": "table", "root": str(root), "batch_size": 8, "image_size": 8, **data}
    return JobSpec.from_dict({"data": own, "model": {"name": "resnet18", "stem": "tiny"}})


WRITERS: dict[str, Callable[[pa.Table, Path], Path]] = {
    "csv": lambda table, folder: write_csv(table, folder / "t.csv"),
    "semicolons": lambda table, folder: write_csv(table, folder / "t.csv", ";"),
    "tsv": lambda table, folder: write_csv(table, folder / "t.tsv", "\t"),
    "gzip": lambda table, folder: write_gzip(table, folder / "t.csv.gz"),
    "parquet": lambda table, folder: write_parquet(table, folder / "t.parquet"),
    "jsonl": lambda table, folder: write_json(table, folder / "t.jsonl", lines=True),
    "json": lambda table, folder: write_json(table, folder / "t.json", lines=False),
}


def test_every_kind_of_file_gives_the_same_samples(tmp_path: Path) -> None:
    table, prints = rows(tmp_path), set()
    for write in WRITERS.values():
        train, test = load_images(spec_of(write(table, tmp_path)).data)
        assert (train.classes, len(train), len(test)) == (("cat", "dog"), 21, 3)
        assert torch.cat([train.labels, test.labels]).bincount().tolist() == [16, 8]
        prints.add((train.fingerprint(), test.fingerprint()))
    assert len(prints) == 1
    other = table.set_column(1, "label", pa.array(["dog", *LABELS * 8][:COUNT]))
    assert load_images(spec_of(write_csv(other, tmp_path / "o.csv")).data)[0].fingerprint() not in str(prints)


def encoded(table: pa.Table, folder: Path) -> pa.Table:
    cells = [{"bytes": (folder / path).read_bytes(), "path": None} for path in table["image"].to_pylist()]
    return table.set_column(0, "image", pa.array(cells))


def test_a_saved_data_set_has_the_pixels_and_the_names_of_its_classes(tmp_path: Path) -> None:
    table = encoded(rows(tmp_path), tmp_path)
    numbers = pa.array([{"cat": 1, "dog": 0}[label] for label in table["label"].to_pylist()])
    features = {"label": {"names": ["dog", "cat", "bird"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = table.set_column(1, "label", numbers).replace_schema_metadata(metadata)
    train, test = load_images(spec_of(save_to_disk(table, tmp_path / "saved")).data)
    assert train.classes == ("dog", "cat", "bird")
    assert len(train) + len(test) == COUNT
    stored = {torch.from_numpy(np.array(Image.open(BytesIO(png(n))))).permute(2, 0, 1) for n in range(COUNT)}
    assert any(torch.equal(train.pixels(3), image) for image in stored)


@pytest.mark.parametrize("below", ["", "data"])
def test_a_folder_has_its_splits_by_the_names_of_its_files(tmp_path: Path, below: str) -> None:
    folder = tmp_path / below
    table = rows(tmp_path)
    folder.mkdir(exist_ok=True)
    absolute = pa.array([str(tmp_path / path) for path in table["image"].to_pylist()])
    table = table.set_column(0, "image", absolute)
    for number, part in enumerate((table.slice(0, 9), table.slice(9, 9))):
        write_parquet(part, folder / f"train-0000{number}-of-00002.parquet")
    write_parquet(table.slice(18), folder / "test-00000-of-00001.parquet")
    train, test = load_images(spec_of(tmp_path).data)
    assert (len(train), len(test)) == (18, 6)


def test_a_saved_dictionary_has_a_folder_for_each_split(tmp_path: Path) -> None:
    table = encoded(rows(tmp_path), tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    save_to_disk(table.slice(0, 15), tmp_path / "saved" / "train")
    save_to_disk(table.slice(15), tmp_path / "saved" / "validation")
    train, test = load_images(spec_of(tmp_path / "saved").data)
    assert (len(train), len(test)) == (15, 9)


TEXTS = {
    "empty": "",
    "ragged": "image,label\na,b,c\n",
    "kind": "x",
    "twice": "image,label,label\na,b,c\n",
    "latin": "image,label\na,\xc4pfel\nb,Birne\n",
}


def broken(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A table with one thing wrong."""
    table = rows(folder)
    if name == "gone":
        return folder / "nowhere.csv", {}
    if name == "column":
        return write_csv(table, folder / "t.csv"), {"columns": {"image": "imge"}}
    if name == "image":
        (folder / "images" / "4.png").unlink()
    if name in TEXTS:
        path = folder / ("t.xlsx" if name == "kind" else "t.csv")
        path.write_bytes(TEXTS[name].encode("latin-1"))
        return path, {}
    if name == "label":
        return write_json(
            table.set_column(1, "label", pa.array([None, *LABELS * 8][:COUNT])),
            folder / "t.jsonl",
            lines=True,
        ), {}
    if name == "number":
        table = table.set_column(1, "label", pa.array([0.5] * COUNT))
    if name == "one":
        table = table.set_column(1, "label", pa.array(["cat"] * COUNT))
    if name == "selected":
        return save_to_disk(table, folder / "saved", _indices_files=[{"filename": "i.arrow"}]), {}
    if name == "split":
        other = table.set_column(1, "label", pa.array(["cat"] * (COUNT - 1) + ["dgo"]))
        write_csv(other, folder / "val.csv")
        return write_csv(table, folder / "train.csv").parent, {}
    return write_csv(table, folder / "t.csv"), {}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone", "nowhere.csv: there is no such file or folder"),
        ("column", "there is no column 'imge'; it has image, label, note; did you mean \"image\"?"),
        ("image", "t.csv: row 5: there is no file"),
        ("empty", "t.csv: cannot be read: its first line is empty"),
        ("ragged", "Expected 2 columns, got 3"),
        ("kind", "t.xlsx: is none of .csv, .tsv"),
        ("label", "t.jsonl: row 1 has no label"),
        ("number", "column 'label' is double: labels are texts or whole numbers"),
        ("twice", "column 'label' is there twice"),
        ("latin", "(0xc4, in line 2) is not UTF-8: save it as UTF-8"),
        ("one", "column 'label' has 1 class, cat: it takes two or more"),
        ("selected", "call flatten_indices() before save_to_disk"),
        ("split", "row 24: label 'dgo' is no class of the training data (cat, dog); did you mean \"dog\"?"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    root, data = broken(name, tmp_path)
    with pytest.raises(DataError) as caught:
        load_images(spec_of(root, **data).data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_image_may_be_skipped_and_a_broken_cell_names_its_row(tmp_path: Path) -> None:
    root, _ = broken("image", tmp_path)
    train, test = load_images(spec_of(root, on_broken="skip").data)
    assert len(train) + len(test) == COUNT
    table = pa.table({"image": [b"no image"] * 4, "label": [0, 0, 1, 1]})
    found, _ = load_images(spec_of(write_parquet(table, tmp_path / "t.parquet"), val_share=0.5).data)
    with pytest.raises(SampleError, match=r"t\.parquet: row [12]: is not a readable image"):
        found.pixels(0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"dataset": "table"}, "data.root: is required for table: its file"),
        ({"dataset": "digits", "columns": {"image": "file"}}, "is for table, and data.dataset is digits"),
        (
            {"dataset": "table", "root": "t.csv", "columns": {"features": ["a", "label"]}},
            "has the label, label, from which the class follows",
        ),
        (
            {"dataset": "table", "root": "t.csv", "columns": {"features": ["a", "a"]}},
            "names a column twice",
        ),
        ({"dataset": "table", "root": "t.csv", "columns": {"imag": "file"}}, 'did you mean "image"?'),
    ],
)
def test_fields_of_a_table_are_checked_in_the_spec(data: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict({"data": data})
    assert said in str(caught.value)


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    spec = spec_of(write_csv(rows(tmp_path), tmp_path / "t.csv"), augment="standard")
    whole, part = (begin(load_workload(spec), spec, 6) for _ in range(2))
    whole.train(6)
    part.train(3)
    kept = part.keep(tmp_path / "checkpoints")
    part.train(5)
    settle(kept)
    resumed = begin(load_workload(spec), spec, 6)
    assert CheckpointManager(tmp_path / "checkpoints", resumed.parts).load_latest() == 3
    resumed.train(6)
    assert_same_weights(whole, resumed)
