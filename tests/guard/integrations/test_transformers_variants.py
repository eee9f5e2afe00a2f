"""What people use Hugging Face's trainer with: the guard does not change it, and acts in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import problem
import pytest
import torch
from torch import Tensor, nn

from tests.guard.integrations.problem import NEVER
from tests.guard.loops import differences

pytest.importorskip("transformers", reason="needs the extra: pip install gradguard[transformers]")
pytest.importorskip("accelerate", reason="needs the extra: pip install gradguard[transformers]")
from transformers import GPT2Config, GPT2LMHeadModel, PretrainedConfig, Trainer

from guard import ClipConfig, GuardConfig
from guard.integrations.transformers import GuardedTrainer
from tests.guard.integrations.test_transformers import Regression, arguments, rows, run

VARIANTS: dict[str, dict[str, Any]] = {
    "best model": {
        "eval_strategy": "steps",
        "eval_steps": 20,
        "save_strategy": "steps",
        "save_steps": 20,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "label_names": ["targets"],
    },
    "label smoothing": {"label_smoothing_factor": 0.1},
    "accumulated tokens": {"gradient_accumulation_steps": 3},
}


class Classifier(nn.Module):
    """Returns logits, from which the trainer makes a smoothed loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = problem.network()
        self.config = PretrainedConfig()

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = {"logits": self.net(inputs)}
        if labels is None:  # the trainer smooths the loss itself
            return logits
        return {"loss": nn.functional.cross_entropy(logits["logits"], labels), **logits}


def language_rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(4, 13, (640,), generator=generator).tolist()
    found = []
    for length in lengths:
        tokens = torch.randint(1, 32, (12,), generator=generator)
        labels = torch.where(torch.arange(12) < length, tokens, -100)
        found.append({"input_ids": tokens, "labels": labels})
    return found


def parts(name: str) -> tuple[nn.Module, list[dict[str, Any]]]:
    if name == "label smoothing":
        return Classifier(), [{"inputs": r["inputs"], "labels": r["targets"].argmax()} for r in rows()]
    if name == "accumulated tokens":
        torch.manual_seed(0)
        sizes = {"n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=32, bos_token_id=0, eos_token_id=0, **sizes)
        ), language_rows()
    return Regression(), rows()


def trained(folder: Path, name: str, *, guarded: bool) -> Trainer:
    model, data = parts(name)
    options = {"max_steps": 60, "remove_unused_columns": False, **VARIANTS[name]}
    given: dict[str, Any] = {"train_dataset": data, "eval_dataset": data[:64]}
    args = arguments(folder, **options)
    if guarded:
        given["guard_config"] = GuardConfig(clip=ClipConfig(max_norm=NEVER))
    trainer = (GuardedTrainer if guarded else Trainer)(model, args, **given)
    run(trainer)
    return trainer


@pytest.mark.parametrize("name", VARIANTS)
def test_an_idle_guard_changes_nothing(tmp_path: Path, name: str) -> None:
    plain = trained(tmp_path / "plain", name, guarded=False)
    guarded = trained(tmp_path / "guarded", name, guarded=True)
    assert plain.model is not None
    assert guarded.model is not None
    assert not differences(dict(plain.model.state_dict()), dict(guarded.model.state_dict()))
    assert isinstance(guarded, GuardedTrainer)
    assert guarded.guard is not None
    assert guarded.guard.steps == 60
    assert guarded.guard.totals.incidents == 0


def test_the_loss_of_a_window_with_uneven_micro_batches_is_that_of_its_tokens(tmp_path: Path) -> None:
    guarded = trained(tmp_path, "accumulated tokens", guarded=True)
    assert isinstance(guarded, GuardedTrainer)
    assert guarded.report is not None
    logged = [row["loss"] for row in guarded.state.log_history if "loss" in row]
    assert guarded.report.loss == pytest.approx(logged[-1], rel=0.1)
