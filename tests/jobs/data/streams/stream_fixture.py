"""Rows with a number, a text and a label, as files of every kind that a stream is read from."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from jobs.spec.job_spec import JobSpec

Row = dict[str, Any]


def rows(count: int, first: int = 0) -> list[Row]:
    """A number that names the row, a text with line breaks and quotes, a label of three."""
    return [
        {"x": float(n), "text": f'row {n}, "so"\nit goes', "label": "abc"[n % 3]}
        for n in range(first, first + count)
    ]


def write(path: Path, content: Sequence[Row], *, block: int = 10) -> Path:
    """A file of the kind that its name says; ``block`` rows in a row group of Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(list(content)), path, row_group_size=block)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["x", "text", "label"])
            writer.writeheader()
            writer.writerows(content)
    return path


def tar(path: Path, files: dict[str, bytes]) -> Path:
    """A tar with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def spec_of(root: Path, **sections: Any) -> JobSpec:
    """A job that streams a table."""
    data = {"dataset": "table", "root": str(root), "batch_size": 8, "stream": {}, **sections.pop("data", {})}
    return JobSpec.from_dict({"workload": "tabular", "data": data, **sections})
