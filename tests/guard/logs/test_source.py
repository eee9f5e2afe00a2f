"""Files as people have them: compressed, in other encodings, in folders, and those that are no logs."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from guard.decide.advice import taken_for
from guard.decide.replay import replay
from guard.logs.log import Row, TraceError
from guard.logs.trace import TraceReader

ROWS = [Row(float(at), 2.0 - 0.01 * at, 0.5) for at in range(30)]
TEXT = "step,loss,grad_norm\n" + "".join(f"{row.step:g},{row.loss},{row.grad_norm}\n" for row in ROWS)


def read(path: Path, content: str | bytes) -> list[Row]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(TraceReader(path))


def zstd(data: bytes) -> bytes:
    pa = pytest.importorskip("pyarrow")
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_compressed_log_is_recognized_by_its_bytes(pack: object, tmp_path: Path) -> None:
    assert read(tmp_path / "log", pack(TEXT.encode())) == ROWS  # type: ignore[operator]


def test_letters_of_another_encoding_do_not_matter(tmp_path: Path) -> None:
    lines = "".join(f"Für Schritt: step {row.step:g} loss {row.loss} gnorm 0.5\n" for row in ROWS)
    assert read(tmp_path / "log", lines.encode("latin-1")) == ROWS


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PAR1" + bytes(9), "a Parquet file"),
        (b"PK\x03\x04" + bytes(9), "a zip archive or a checkpoint"),
        (b":W&B\xba\xde\x00", "W&B's own format"),
        (bytes(range(256)), "binary, not text"),
        (b"step,loss\n", "CSV without a row: nothing was logged yet"),
        (b"", "is empty: nothing was logged yet"),
        (b"no names and no numbers\n", "see --regex"),
    ],
)
def test_what_is_no_log_is_named(data: bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=what):
        read(tmp_path / "log", data)


@pytest.mark.parametrize(("before", "after"), [(0, 5000), (5000, 0), (7, 7)])
def test_zeros_at_the_ends_are_left_out(before: int, after: int, tmp_path: Path) -> None:
    """After a crash a file system may leave them at the end, a log that was rotated at the start."""
    assert read(tmp_path / "log", bytes(before) + TEXT.encode() + bytes(after)) == ROWS


def test_a_device_without_end_is_no_log() -> None:
    with pytest.raises(TraceError, match="binary, not text"):
        list(TraceReader("/dev/zero"))


@pytest.mark.parametrize(
    "text",
    [
        "sep=,\r\n" + TEXT,
        "# step loss grad_norm\n" + "".join(f"{row.step:g} {row.loss} 0.5\n" for row in ROWS),
        "# a run\n# step,loss,grad_norm\n" + TEXT.partition("\n")[2],
        "".join(f"- step: {row.step:g}\n  loss: {row.loss}\n  grad_norm: 0.5\n" for row in ROWS),
        "".join(f"Step {row.step:g}/30:\n    loss = {row.loss}\n    grad norm = 0.5\n" for row in ROWS),
    ],
    ids=["Excel", "savetxt", "a comment above", "YAML", "printed blocks"],
)
def test_headers_and_blocks_of_other_programs_are_read(text: str, tmp_path: Path) -> None:
    assert read(tmp_path / "run.log", text) == ROWS


@pytest.mark.parametrize("field", ["log", "message", "MESSAGE", "textPayload", "jsonPayload/msg"])
def test_lines_inside_of_json_are_read(field: str, tmp_path: Path) -> None:
    printed = [f"step {row.step:g} | loss {row.loss} | gnorm 0.5\n" for row in ROWS]
    section, _, name = field.rpartition("/")
    texts = [{name: line, "time": "2026-01-02T03:04:05Z"} for line in ("Starting\n", *printed)]
    lines = [json.dumps({section: text} if section else text) for text in texts]
    assert read(tmp_path / "container-json.log", "\n".join(lines)) == ROWS


def test_the_last_checkpoint_of_hugging_face_has_the_whole_log(tmp_path: Path) -> None:
    for last in (9, 30, 10):
        history = [row._asdict() for row in ROWS[:last]]
        read(tmp_path / f"out/checkpoint-{last}/trainer_state.json", json.dumps({"log_history": history}))
    assert list(TraceReader(tmp_path / "out")) == ROWS


def test_the_only_log_below_a_folder_is_found_and_several_are_named(tmp_path: Path) -> None:
    read(tmp_path / "lightning_logs/version_0/metrics.csv", TEXT)
    assert list(TraceReader(tmp_path)) == ROWS
    read(tmp_path / "lightning_logs/version_0/train.log", "step 1 loss 9.0\n")
    assert list(TraceReader(tmp_path)) == ROWS
    read(tmp_path / "lightning_logs/version_1/metrics.csv", TEXT)
    with pytest.raises(TraceError, match=r"several runs: name one of lightning_logs/version_0/"):
        list(TraceReader(tmp_path))


@pytest.mark.parametrize("first", [0, 1])
def test_steps_that_start_again_with_each_epoch_are_counted_on(first: int, tmp_path: Path) -> None:
    cells = [f"{at // 10},{first + at % 10},{row.loss},0.5\n" for at, row in enumerate(ROWS)]
    found = read(tmp_path / "log.csv", "epoch,batch,loss,grad_norm\n" + "".join(cells))
    assert [row.step for row in found] == [first + row.step for row in ROWS]
    resumed = [f"{epoch},{step},1.0\n" for epoch, step in ((0, 1), (0, 2), (1, 3), (1, 4), (0, 2), (1, 3))]
    found = read(tmp_path / "resumed.csv", "epoch,step,loss\n" + "".join(resumed))
    assert [row.step for row in found] == [1, 2, 3, 4, 2, 3], "as the log has them"


def test_steps_that_go_back_are_reported(tmp_path: Path) -> None:
    read(tmp_path / "log.csv", TEXT + TEXT.split("\n", 1)[1])
    assert "steps that go back: 1" in taken_for(replay(tmp_path / "log.csv"))


@pytest.mark.parametrize(
    "document",
    [
        {"config": {"lr": 0.1}, "metrics": [row._asdict() for row in ROWS]},
        {name: {str(at): getattr(row, name) for at, row in enumerate(ROWS)} for name in Row._fields},
        {"train": {name: [getattr(row, name) for row in ROWS] for name in Row._fields}},
        [{"step": r.step, "train": {"loss": r.loss, "grad_norm": 0.5}, "val": {"loss": 99}} for r in ROWS],
        [
            {"step": r.step, "learning/loss": r.loss, "learning/grad_norm": 0.5, "learning/raw_grad_norm": 9}
            for r in ROWS
        ],
    ],
)
def test_sections_of_json_are_searched(document: object, tmp_path: Path) -> None:
    assert read(tmp_path / "log.json", json.dumps(document)) == ROWS


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace(",", "|").replace("\n", "\n---|:---|---:\n", 1),
        "step loss grad_norm time\n" + "".join(f"{r.step:g}  {r.loss}  0.5  00:10  \n" for r in ROWS),
    ],
)
def test_tables_of_documents_and_of_fastai_are_read(text: str, tmp_path: Path) -> None:
    assert read(tmp_path / "log", text) == ROWS


def test_a_row_a_metric_becomes_a_row_a_step(tmp_path: Path) -> None:
    lines = [f"fox,loss,{row.loss},{row.step:g}" for row in ROWS]
    lines += [f"fox,grad_norm,0.5,{row.step:g}" for row in ROWS]
    assert read(tmp_path / "log", "\n".join(["Run,Metric,Value,Step", *lines])) == ROWS


def test_what_is_printed_between_json_lines_and_evaluations_are_no_rows(tmp_path: Path) -> None:
    lines = []
    for row in ROWS:
        lines += [json.dumps({"type": "train", **row._asdict()}), "WARNING: slow batch"]
        lines += [json.dumps({"type": "eval", "step": row.step, "loss": 99.0})]
    assert read(tmp_path / "log", "\n".join(lines)) == ROWS


def test_ultralytics_adds_up_the_losses_of_any_task(tmp_path: Path) -> None:
    names = ("giou", "cls", "l1", "pose")
    header = ",".join(["epoch", "time", *(f"train/{name}_loss" for name in names), "val/giou_loss"])
    lines = [f"{r.step:g},1," + ",".join(str(r.loss / 4) for _ in names) + ",99" for r in ROWS if r.loss]
    found = read(tmp_path / "results.csv", "\n".join([header, *lines]))
    with pytest.raises(TraceError, match=r"results\.csv:2: train/giou_loss \+ .* is 'x', not a number"):
        read(tmp_path / "other" / "results.csv", "\n".join([header, "0,1,x,1,1,1,99"]))
    assert [row.loss for row in found] == pytest.approx([row.loss for row in ROWS])
