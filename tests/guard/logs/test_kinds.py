"""Logs as other tools write them are recognized by their content, and read with the log's own steps."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.decide.replay import replay
from guard.logs.log import TraceError
from guard.logs.trace import TraceReader
from tests.guard.synthetic_runs import Step, run

Write = Callable[[list[tuple[int, Step]]], str]


@pytest.fixture
def steps() -> list[tuple[int, Step]]:
    """Logged every 10 steps, with one explosion at step 2,000."""
    made = run(300, norm=lambda _: 0.5)
    made[200] = Step((made[200].loss or 0) * 4, 4.0)
    return [(10 * (i + 1) - 10, s) for i, s in enumerate(made)]


def table(header: str, row: Callable[[int, Step], str], *, end: str = "\n") -> Write:
    return lambda steps: end.join([header, *(row(i, s) for i, s in steps)]) + end


def printed(row: Callable[[int, Step], str], every_50: Callable[[int, Step], str] | None = None) -> Write:
    def write(steps: list[tuple[int, Step]]) -> str:
        lines = ["[2025-01-01] using world size: 8, seed 1337"]
        for at, (i, s) in enumerate(steps):
            lines.append(row(i, s))
            if every_50 and at % 50 == 49:
                lines.append(every_50(i, s))
        return "\n".join(lines) + "\n"

    return write


def json_lines(row: Callable[[int, Step], dict[str, object]], *others: dict[str, object]) -> Write:
    return lambda steps: "\n".join(json.dumps(r) for i, s in steps for r in (row(i, s), *others)) + "\n"


def mm_lines(steps: list[tuple[int, Step]]) -> str:
    """mmcv: ``iter`` starts again with each epoch of 1,000 batches."""
    lines: list[dict[str, object]] = [{"env_info": "torch 1.13", "seed": 0}]
    for i, s in steps:
        at = (i - 10) % 1000 + 10
        lines.append(
            {
                "mode": "train",
                "epoch": (i - 10) // 1000 + 1,
                "iter": at,
                "loss": s.loss,
                "grad_norm": s.grad_norm,
            }
        )
        if at == 1000:
            lines.append({"mode": "val", "epoch": i // 1000, "iter": 500, "loss": 99.0, "bbox_mAP": 0.3})
    return "\n".join(map(json.dumps, lines))


def torchtitan(i: int, s: Step) -> str:
    return (
        f"[rank0]:[titan] 2025-01-01 00:00:00,123 - root - INFO - "
        f"\x1b[31mstep: {i:2}  \x1b[32mloss: {s.loss:7.4f}  "
        f"\x1b[38;2;180;60;0mgrad_norm: {s.grad_norm:7.4f}  \x1b[38;2;54;234;195mmemory:  0.34GiB(0.36%)  "
        "\x1b[34mtps: 1,234  \x1b[36mtflops: 1.00  \x1b[35mmfu: 1.00%\x1b[39m\n"
        f"[rank1]:[titan] 2025-01-01 00:00:00,123 - root - INFO - step: {i:2}  loss: 99.0  tps: 1,234"
    )


def llmc(i: int, s: Step) -> str:
    return (
        f"step {i:4d}/3000 | loss {s.loss:7.6f} (+0.12z)| norm {s.grad_norm:6.4f} (-0.33z)| lr 8.57e-07 | "
        "3012.88 ms | 48.8% bf16 MFU | 174012 tok/s"
    )


def olmo(i: int, s: Step) -> str:
    return (
        f"2025-01-01 00:00:00\thost:0\tolmo.train:905\tINFO\t[step={i}/739328,epoch=0]\n"
        f"    optim/total_grad_norm={s.grad_norm:.4f}\n    train/CrossEntropyLoss={s.loss:.6f}\n"
        "    train/Perplexity=80,100\n    throughput/total_tokens=4,194,304"
    )


def axolotl(i: int, s: Step) -> str:
    return (
        f"\r  1%|▏         | {i}/3000 [00:10<16:00,  1.03it/s]\n"
        f"{{'loss': {s.loss}, 'grad_norm': {s.grad_norm}, 'learning_rate': 2e-05, 'epoch': 0.01}}"
    )


def imagenet(i: int, s: Step) -> str:
    where = f"Epoch: [{i // 1000}][{i % 1000:5d}/1000]"
    return f"{where}\tTime  0.438 ( 1.2)\tLoss {s.loss:.6e} (6.95e+00)\tAcc@1 1.0"


LOGS: dict[str, tuple[Write, bool]] = {
    "nanoGPT log": (printed(lambda i, s: f"iter {i}: loss {s.loss:.6f}, time 310.20ms, mfu 41.20%"), False),
    "llm.c log": (printed(llmc, lambda _i, _s: "val loss 99.0"), True),
    "llm.c log (main.log)": (
        printed(
            lambda i, s: f"s:{i} trl:{s.loss:.6f} lr:0.000100 norm:{s.grad_norm}",
            lambda i, _: f"s:{i} tel:99.0",
        ),
        True,
    ),
    "OLMo log": (printed(olmo), True),
    "torchtitan log": (printed(torchtitan), True),
    "Hugging Face or axolotl log": (
        printed(axolotl, lambda _i, _s: " 50%|█  | 3/50 [00:01<00:10]\n{'eval_loss': 99.0, 'epoch': 0.01}"),
        True,
    ),
    "log of a progress bar": (printed(imagenet), False),
    "mm* log": (
        printed(
            lambda i, s: (
                f"04/05 12:00:00 - mmengine - INFO - Epoch(train)  [{i // 1000 + 1}][{i % 1000:4d}/1000]  "
                f"lr: 1.0e-3  eta: 1:00:00  time: 0.5  loss: {s.loss:.6f}  grad_norm: {s.grad_norm}"
            )
        ),
        True,
    ),
    "W&B export": (
        table(
            '"Step","amber-fog-3 - train/loss","amber-fog-3 - train/loss__MIN"',
            lambda i, s: f'"{i}","{s.loss}","{s.loss}"',
        ),
        False,
    ),
    "W&B history": (
        json_lines(
            lambda i, s: {
                "_step": i,
                "_timestamp": 1.7e9,
                "train/loss": s.loss,
                "train/grad_norm": s.grad_norm,
            },
            {"_step": 1, "_timestamp": 1.7e9, "eval/loss": 99.0},
        ),
        True,
    ),
    "TensorBoard CSV": (table("Wall time,Step,Value", lambda i, s: f"1.7e9,{i},{s.loss}"), False),
    "TensorBoard JSON": (lambda steps: json.dumps([[1.7e9, i, s.loss] for i, s in steps]), False),
    "CSV with a row an epoch (Keras)": (
        table("epoch,accuracy,loss,val_accuracy,val_loss", lambda i, s: f"{i},0.5,{s.loss},0.5,99"),
        False,
    ),
    "ultralytics results.csv": (
        table(
            "  epoch,  train/box_loss,  train/cls_loss,  train/dfl_loss,  val/box_loss",
            lambda i, s: f"  {i},  {s.loss / 2}, {s.loss / 4}, {s.loss / 4}, 99",  # type: ignore[operator]
        ),
        False,
    ),
    "detectron2 metrics.json": (
        json_lines(lambda i, s: {"iteration": i, "total_loss": s.loss, "loss_cls": 0.1, "lr": 0.02}),
        False,
    ),
    "mm* JSON log": (lambda steps: mm_lines([(i + 10, s) for i, s in steps]), True),
    "JSON array": (
        lambda steps: json.dumps([{"step": i, "loss": s.loss, "grad_norm": s.grad_norm} for i, s in steps]),
        True,
    ),
    "JSON columns": (
        lambda steps: json.dumps({"step": [i for i, _ in steps], "loss": [s.loss for _, s in steps]}),
        False,
    ),
    "TSV": (table("step\tloss\tgrad_norm", lambda i, s: f"{i}\t{s.loss}\t{s.grad_norm}"), True),
    "CSV": (table("step;loss;grad_norm", lambda i, s: f"{i};{s.loss};{s.grad_norm}", end="\r\n"), True),
}


@pytest.mark.parametrize("kind", LOGS)
def test_a_log_is_recognized_and_its_explosion_is_at_its_step(
    tmp_path: Path, steps: list[tuple[int, Step]], kind: str
) -> None:
    write, has_norm = LOGS[kind]
    path = tmp_path / "log"  # nothing is known from the name
    path.write_text(write(steps))
    reader = TraceReader(path)
    rows = list(reader)
    first = 10 if kind == "mm* JSON log" else 0
    assert reader.kind == kind.removesuffix(" (main.log)")
    assert [row.step for row in rows] == [i + first for i, _ in steps]
    assert [row.loss for row in rows] == pytest.approx([s.loss for _, s in steps], rel=1e-3)
    norms = [s.grad_norm if has_norm else None for _, s in steps]
    assert [row.grad_norm for row in rows] == (pytest.approx(norms, rel=1e-3) if has_norm else norms)
    assert [alarm["step"] for alarm in replay(path).alarms] == [2000 + first]


def test_standard_input_may_be_gzipped(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, Step]]
) -> None:
    packed = gzip.compress(LOGS["TSV"][0](steps).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed)))
    assert [alarm["step"] for alarm in replay("-").alarms] == [2000]


def test_a_log_may_come_through_a_pipe(tmp_path: Path, steps: list[tuple[int, Step]]) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(LOGS["TSV"][0](steps),))
    writer.start()
    assert [alarm["step"] for alarm in replay(tmp_path / "pipe").alarms] == [2000]
    writer.join()


def test_a_regular_expression_reads_any_line(tmp_path: Path, steps: list[tuple[int, Step]]) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"<{i}> cost={s.loss}e0; |g|={s.grad_norm}\n" for i, s in steps))
    regex = r"<(?P<step>\d+)> cost=(?P<loss>\S+); \|g\|=(?P<grad_norm>\S+)"
    assert [alarm["step"] for alarm in replay(path, regex=regex).alarms] == [2000]


@pytest.mark.parametrize(("regex", "problem"), [("(", "--regex"), ("loss (.*)", "has no group named loss")])
def test_a_wrong_regular_expression_is_refused(tmp_path: Path, regex: str, problem: str) -> None:
    (tmp_path / "log").write_text("loss 1\n")
    with pytest.raises(TraceError, match=problem):
        replay(tmp_path / "log", regex=regex)


def test_a_run_of_mlflow_is_read_by_its_folder_or_a_metric(
    tmp_path: Path, steps: list[tuple[int, Step]]
) -> None:
    metrics = tmp_path / "mlruns" / "0" / "3f2a" / "metrics" / "train"
    metrics.mkdir(parents=True)
    for name in ("loss", "grad_norm"):
        lines = (f"1700000000000 {getattr(s, name)} {i}\n" for i, s in steps)
        (metrics / name).write_text("".join(lines))
    for path in (tmp_path / "mlruns", metrics / "loss"):
        assert [alarm["step"] for alarm in replay(path).alarms] == [2000]
    assert replay(tmp_path / "mlruns").columns["grad_norm"] == "train/grad_norm"
    other = tmp_path / "mlruns" / "0" / "77aa" / "metrics"
    other.mkdir(parents=True)
    (other / "loss").write_text("1700000000000 1.0 0\n")
    with pytest.raises(TraceError, match=r"several MLflow runs: name one of the folders 0/3f2a, 0/77aa"):
        replay(tmp_path / "mlruns")


def test_event_files_of_tensorboard_are_read_by_file_or_folder(
    tmp_path: Path, steps: list[tuple[int, Step]]
) -> None:
    proto = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(tmp_path / "run"))
    for i, s in steps:
        event = proto.Event(wall_time=1.7e9, step=i)
        event.summary.value.add(tag="train/loss", simple_value=s.loss)
        norm = event.summary.value.add(tag="train/grad_norm")  # as TensorFlow 2 writes it
        norm.tensor.dtype, norm.tensor.tensor_content = 1, struct.pack("<f", s.grad_norm)
        writer.add_event(event)
    writer.close()
    (file,) = (tmp_path / "run").iterdir()
    for path in (tmp_path, tmp_path / "run", file):
        result = replay(path)
        assert [alarm["step"] for alarm in result.alarms] == [2000]
        assert (result.rows, result.kind) == (300, "TensorBoard event file")
        assert result.columns["grad_norm"] == "train/grad_norm"


def test_values_that_were_written_without_a_step_are_counted(tmp_path: Path) -> None:
    proto = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(tmp_path))
    for loss in (3.0, 2.0, 1.0):
        event = proto.Event(wall_time=1.7e9)
        event.summary.value.add(tag="loss", simple_value=loss)
        writer.add_event(event)
    writer.close()
    assert [(row.step, row.loss) for row in TraceReader(tmp_path)] == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_without_the_library_of_tensorboard_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    with pytest.raises(TraceError, match=r"TensorBoard event file: .*pip install .*--loss Value"):
        list(TraceReader(tmp_path))


def test_the_folder_of_a_run_may_be_given(tmp_path: Path, steps: list[tuple[int, Step]]) -> None:
    (tmp_path / "trainer_state.json").write_text(LOGS["JSON array"][0](steps))
    assert [alarm["step"] for alarm in replay(tmp_path).alarms] == [2000]
    (tmp_path / "trainer_state.json").unlink()
    with pytest.raises(TraceError, match="a folder without"):
        replay(tmp_path)


def test_a_header_is_repeated_where_a_run_was_resumed(tmp_path: Path) -> None:
    with (tmp_path / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss"), (0, 1.0), ("step", "loss"), (1, 2.0)])
    assert [row.loss for row in TraceReader(tmp_path / "log.csv")] == [1.0, 2.0]


def test_a_replay_imports_no_torch(tmp_path: Path, steps: list[tuple[int, Step]]) -> None:
    (tmp_path / "log.csv").write_text(LOGS["CSV"][0](steps))
    program = (
        "import sys\nfrom service.cli.app import app\n"
        "app(['replay', sys.argv[1]], standalone_mode=False)\n"
        "print(sorted({'torch', 'ray', 'torchvision', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "log.csv"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "CSV, 300 steps" in done.stdout
