"""Logs as the tools of the field write them are read as the run that they tell of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.decide.replay import replay
from guard.logs.log import TraceError
from guard.logs.trace import TraceReader
from tests.guard.synthetic_runs import Step, run

Write = Callable[[list[Step]], str]


def lightning(steps: list[Step]) -> str:
    """Its CSV logger: validation and the mean of an epoch have rows of their own."""
    lines = ["epoch,grad_norm,step,train_loss_epoch,train_loss_step,val_loss"]
    for i, s in enumerate(steps):
        lines.append(f"{i // 50},{s.grad_norm},{10 * i},,{s.loss},")
        if i % 50 == 49:
            lines += [f"{i // 50},,{10 * i},,,99", f"{i // 50},,{10 * i},99,,"]
    return "\n".join(lines)


def hugging_face(steps: list[Step]) -> str:
    """``trainer_state.json``."""
    records: list[dict[str, float | None]] = []
    for i, s in enumerate(steps):
        records.append({"step": 10 * i, "loss": s.loss, "grad_norm": s.grad_norm, "learning_rate": 1e-4})
        if i % 50 == 49:
            records.append({"step": 10 * i, "eval_loss": 99.0})
    return json.dumps({"best_metric": None, "log_history": records}, indent=2)


def nanogpt(steps: list[Step]) -> str:
    lines = ["tokens per iteration will be: 491,520", "number of parameters: 123.59M"]
    for i, s in enumerate(steps):
        if i % 50 == 0:
            lines.append(f"step {10 * i}: train loss 99.0, val loss 99.0")
        lines.append(f"iter {10 * i}: loss {s.loss}, grad norm {s.grad_norm}, time 310.20ms, mfu 41.20%")
    return "\n".join(lines)


def megatron(steps: list[Step]) -> str:
    lines = ["using world size: 8, data-parallel size: 8"]
    for i, s in enumerate(steps):
        lines.append(
            f" [2025-01-01 00:00:{i % 60:02d}] iteration {10 * i:8d}/    3000 "
            f"| consumed samples: {i * 512:12d} | elapsed time per iteration (ms): 1234.5 "
            "| learning rate: 1.500000E-04 | global batch size:   512 "
            f"| lm loss: {s.loss:.9E} | loss scale: 1.0 | grad norm: {s.grad_norm:.3f} "
            "| number of skipped iterations:   0 | number of nan iterations:   0 |"
        )
    return "\n".join(lines)


def printed_dicts(steps: list[Step]) -> str:
    """What the Hugging Face trainer prints; it has no step."""
    return "\n".join(str({"loss": s.loss, "grad_norm": s.grad_norm, "epoch": 0.1}) for s in steps)


@pytest.fixture
def steps() -> list[Step]:
    steps = run(300, norm=lambda _: 0.5)
    steps[200] = Step((steps[200].loss or 0) * 4, 4.0)
    return steps


@pytest.mark.parametrize(
    ("write", "name", "counted"),
    [
        (lightning, "metrics.csv", False),
        (hugging_face, "trainer_state.json", False),
        (nanogpt, "out.log", False),
        (megatron, "megatron.txt", False),
        (printed_dicts, "train.out", True),
    ],
)
def test_a_log_is_read_as_it_is(
    tmp_path: Path, steps: list[Step], write: Write, name: str, counted: bool
) -> None:
    (tmp_path / name).write_text(write(steps))
    reader = TraceReader(tmp_path / name)
    rows = list(reader)
    assert [row.loss for row in rows] == pytest.approx([s.loss for s in steps], rel=1e-8)
    assert [row.grad_norm for row in rows] == pytest.approx([s.grad_norm for s in steps], abs=1e-3)
    assert [row.step for row in rows] == [i if counted else 10 * i for i in range(300)]
    assert (reader.columns["step"] is None) == counted
    assert [alarm["step"] for alarm in replay(tmp_path / name).alarms] == [200 if counted else 2000]


def test_case_and_punctuation_of_a_usual_name_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Step,Train/Loss,Grad Norm\n7,1.5,0.5\n")
    reader = TraceReader(tmp_path / "a.csv")
    assert list(reader) == [(7.0, 1.5, 0.5)]
    assert reader.columns == {"step": "Step", "loss": "Train/Loss", "grad_norm": "Grad Norm"}


@pytest.mark.parametrize("option", ["step", "loss", "grad_norm"])
def test_a_name_that_was_given_must_be_there(tmp_path: Path, option: str) -> None:
    (tmp_path / "a.csv").write_text("step,loss,grad_norm\n7,1.5,0.5\n")
    with pytest.raises(TraceError, match="no column 'typo': name one of step, loss, grad_norm with --"):
        list(TraceReader(tmp_path / "a.csv", **{option: "typo"}))


def test_other_documents_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n"loss": 1\n}')
    with pytest.raises(TraceError, match=r"has no list of records"):
        list(TraceReader(tmp_path / "a.json"))


def test_a_misspelt_column_is_refused_with_the_one_that_was_probably_meant(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Step,loss,gnorm\n7,1.5,0.5\n")
    with pytest.raises(TraceError, match=r"no column 'stpe': .*did you mean 'Step'"):
        list(TraceReader(tmp_path / "a.csv", step="stpe"))
