"""Printed lines of loops, loggers and progress bars: the training's loss at the log's own steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guard.logs.log import Row
from guard.logs.trace import TraceReader

LOSSES = [round(2.0 - 0.01 * at, 2) for at in range(1, 41)]
Line = Callable[[int, float], str]


def rows(folder: Path, text: str) -> list[Row]:
    path = folder / "run.log"
    path.write_text(text)
    return list(TraceReader(path))


def steps_and_losses(folder: Path, line: Line) -> list[tuple[float, float | None]]:
    text = "\n".join(line(at, loss) for at, loss in enumerate(LOSSES, start=1))
    return [(row.step, row.loss) for row in rows(folder, text)]


EXPECTED = [(float(at), loss) for at, loss in enumerate(LOSSES, start=1)]

IN_ANY_LOOP: dict[str, Line] = {
    "epoch and step of PyTorch tutorials": lambda i, x: (
        f"Epoch [{(i - 1) // 10 + 1}/4], Step [{(i - 1) % 10 + 1}/10], Loss: {x:.4f}"
    ),
    "epoch and batch of MNIST": lambda i, x: (
        f"Train Epoch: {(i - 1) // 10 + 1} [{(i - 1) % 10 + 1}/10 (5%)]\tLoss: {x:.6f}"
    ),
    "epochs of timm, from 0": lambda i, x: (
        f"Train: {(i - 1) // 10} [{(i - 1) % 10 + 1:4d}/10 ( 50%)]  Loss: {x:.4f} (6.94)  Time: 0.3s"
    ),
    "iterations of all epochs": lambda i, x: f"Epoch[{(i - 1) // 10 + 1}] Iteration[{i}/10] Loss: {x}",
    "position first": lambda i, x: f"[{i}/40] loss: {x}",
    "boosting round first": lambda i, x: f"[{i}]\ttrain-logloss:{x}\teval-logloss:99.0",
    "iteration of mmcv": lambda i, x: f"2021-01-01 - mmseg - INFO - Iter [{i}/80000]\tlr: 2e-02, loss: {x}",
    "a row an epoch": lambda i, x: f"Epoch: {i:03d} | Train Loss: {x:.4f} | Val. Loss: 99.0 | Time: 0m 3s",
    "MindSpore": lambda i, x: f"epoch: 1 step: {i}, loss is {x}",
    "loguru": lambda i, x: f"2025-01-01 00:00:00.123 | INFO     | train:step:42 - step={i} loss={x}",
    "logging": lambda i, x: f"2025-01-01 00:00:00,123 - __main__ - INFO - step: {i}, train_loss: {x}",
    "logging without a separator": lambda i, x: f"2025-01-01 00:00:00 INFO step {i} loss {x}",
    "containers": lambda i, x: f"2025-01-01T00:00:00.123456789Z stdout F step={i} loss={x}",
    "tensors": lambda i, x: f"step {i} loss: tensor({x}, device='cuda:0', grad_fn=<NllLossBackward0>)",
    "numbers of NumPy": lambda i, x: str({"step": i}) + f" {{'loss': np.float64({x})}}",
    "colours copied as text": lambda i, x: f"^[[31mstep: {i}  ^[[32mloss: {x}^[[39m",
    "ranks of srun": lambda i, x: f"1: step {i} loss {x}\n0: step {i} loss 99.0",
    "workers of Ray": lambda i, x: f"(W pid=7, ip=10.0.0.1) step {i} loss {x}\n(W pid=8) step {i} loss 9",
    "losses with digits in their names": lambda i, x: f"iter: {i}, l1_loss: 0.0, total_loss: {x}",
    "steps of an epoch and of all": lambda i, x: f"epoch {i // 10} step {i % 10} global_step {i} loss {x}",
    "a sentence": lambda i, x: f"epoch 1 iter {i}: train loss {x}. lr 6.0e-04",
    "rates": lambda i, x: f"| epoch 1 | {i} batches | iter {i} | ms/batch 12.3 | loss {x} | ppl 9.9",
    "ranks of SageMaker": lambda i, x: (
        f"[1,mpirank:0,algo-1]<stdout>:step={i} loss={x}\n[1,mpirank:1,algo-2]<stdout>:step={i} loss=9"
    ),
    "rank in the line": lambda i, x: f"Step: {i}, Rank: 0, loss = {x}\nStep: {i}, Rank: 1, loss = 99.0",
    "another rank speaks first": lambda i, x: f"[default0]:saving at step {i}\n[default7]:step {i} loss {x}",
    "build-nanogpt": lambda i, x: f"{i} val 99.0\n{i} hella 0.2453\n{i} train {x}",
    "fairseq": lambda i, x: (
        f"| INFO | train_inner | epoch 001: {i:5d} / 40 loss={x}, ppl=5.0, num_updates={i}, gnorm=0.5\n"
        f"| INFO | valid | epoch 001 | valid on 'valid' subset | loss 99.0 | num_updates {i}"
    ),
}


@pytest.mark.parametrize("kind", IN_ANY_LOOP)
def test_the_loss_is_read_at_its_step(kind: str, tmp_path: Path) -> None:
    assert steps_and_losses(tmp_path, IN_ANY_LOOP[kind]) == EXPECTED


def test_long_lines_of_text_take_no_time(tmp_path: Path) -> None:
    """Samples that a language model prints: minutes, if each word were tried with all that follow."""
    sample = "hello world epoch 1 " * 20_000
    assert [row.loss for row in rows(tmp_path, f"{sample}\nstep 1 loss 2.0\n{sample}")] == [2.0]


EVALUATIONS = {
    "torchtitan": "validate step: 10  loss: 99.0000  tps: 1,234",
    "timm": "Test: [   0/78]  Time: 1.2 (1.2)  Loss: 99.0 (99.0)",
    "mm*": "2023/01/01 00:00:00 - mmengine - INFO - Iter(val) [50/50]  mIoU: 0.3  loss: 99.0",
    "MaxText": "eval metrics after step: 10, loss=99.000",
    "PyTorch": "Test set: Average loss: 99.0, Accuracy: 9840/10000 (98%)",
    "a summary": "Done, loss: 99.0",
}


@pytest.mark.parametrize("kind", EVALUATIONS)
def test_an_evaluation_is_no_row(kind: str, tmp_path: Path) -> None:
    found = steps_and_losses(tmp_path, lambda i, x: f"step {i} loss: {x}\n{EVALUATIONS[kind]}")
    assert found == EXPECTED


def test_a_log_of_evaluations_alone_is_read(tmp_path: Path) -> None:
    assert steps_and_losses(tmp_path, lambda i, x: f"test run: step {i} loss {x}") == EXPECTED


def test_code_at_the_head_of_a_log_does_not_choose_the_loss(tmp_path: Path) -> None:
    text = "loss = 3\nstep = 0\n" + "\n".join(
        f"step:{at}/40 train_loss:{x}" for at, x in enumerate(LOSSES, 1)
    )
    assert [(row.step, row.loss) for row in rows(tmp_path, text)] == EXPECTED


BARS: dict[str, Line] = {
    "after the bar": lambda i, x: f"\rEpoch 1:  5%|█    | {i}/40 [00:10<00:50,  3.2it/s, loss={x:.4f}]",
    "before the bar": lambda i, x: f"\rloss {x:.4f}:  5%|█    | {i}/40 [00:10<00:50,  3.2it/s]",
    "without an end": lambda i, x: f"\r{i}it [00:10,  3.2it/s, loss={x}]",
    "shown twice": lambda i, x: "".join(
        f"\r  5%|█   | {i}/40 [00:10<00:50, loss={loss}]" for loss in (99.0, x)
    ),
    "a bar an epoch": lambda i, x: (
        f"\rEpoch {(i - 1) // 10}: 5%|█  | {(i - 1) % 10 + 1}/10 [00:10<00:50, v_num=0, train_loss={x}]"
    ),
    "a bar of epochs": lambda i, x: f"\rEpoch:  {i * 2}%|█  | {i}/40 [00:10<00:50,  3.2it/s, loss={x:.4f}]",
    "the end of each epoch": lambda i, x: (
        f"\nEpoch {i}: 100%|████| 1/1 [00:10<00:00, 9.9it/s, loss={x}, v_num=1]"
    ),
    "with validation": lambda i, x: (
        f"\rEpoch 0: 5%|█  | {i}/40 [00:10<00:50, loss={x}]"
        "\rValidation DataLoader 0: 5%|█ | 1/2 [00:01<00:02, loss=9]"
    ),
    "NeMo": lambda i, x: (
        f"\rEpoch 0: : 5%|█ | {i % 7}/40 [00:10<00:50, v_num=3, reduced_train_loss={x}, global_step={i}.000]"
    ),
    "Keras": lambda i, x: (
        f"Epoch {i}/40\n 1/9 [=>...] - ETA: 0s - loss: 99.0"
        f"\r9/9 [=====] - 1s 10ms/step - loss: {x} - val_loss: 99.0"
    ),
    "Keras 3": lambda i, x: (
        f"Epoch {i}/40\n\r\x1b[1m1/9\x1b[0m \x1b[37m━━\x1b[0m \x1b[1m0s\x1b[0m 10ms/step - loss: 99.0"
        f"\r\x1b[1m9/9\x1b[0m \x1b[32m━━\x1b[0m \x1b[1m1s\x1b[0m 10ms/step - loss: {x} - val_loss: 99.0"
    ),
}


@pytest.mark.parametrize("kind", BARS)
def test_a_progress_bar_has_one_row_a_step_or_an_epoch(kind: str, tmp_path: Path) -> None:
    assert steps_and_losses(tmp_path, BARS[kind]) == EXPECTED
