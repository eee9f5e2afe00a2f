"""Adapters of PEFT: the guard watches and restores what is trained, and leaves the frozen base alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guard import ClipConfig, GradientGuard, GuardConfig, SnapshotConfig
from guard.integrations.transformers import GuardedTrainer
from tests.guard.integrations.problem import NEVER
from tests.guard.integrations.test_transformers import arguments, run
from tests.guard.integrations.test_transformers_variants import language_rows
from tests.guard.loops import differences

peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

# PEFT reads a property that transformers renames in its next release.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
BAD = 30


def adapted() -> Any:
    """A small GPT-2 with LoRA on its attention, with dropout: the random numbers count too."""
    torch.manual_seed(0)
    sizes = {"n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    base = GPT2LMHeadModel(GPT2Config(vocab_size=32, bos_token_id=0, eos_token_id=0, **sizes))
    lora = peft.LoraConfig(
        r=4, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(base, lora)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def batch(number: int) -> dict[str, torch.Tensor]:
    rows = language_rows()[number * 16 % 640 :][:16]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_an_idle_guard_changes_nothing_in_a_trainer(tmp_path: Path) -> None:
    states = []
    for guarded in (False, True):
        args = arguments(tmp_path / str(guarded), max_steps=40, remove_unused_columns=False)
        given = {"guard_config": GuardConfig(clip=ClipConfig(max_norm=NEVER))} if guarded else {}
        trainer = (GuardedTrainer if guarded else Trainer)(
            adapted(), args, train_dataset=language_rows(), **given
        )
        run(trainer)
        states.append(state(trainer.model))
    assert isinstance(trainer, GuardedTrainer)
    assert trainer.guard is not None
    assert trainer.guard.totals.incidents == 0
    assert not differences(*states)


def test_a_bad_batch_leaves_the_adapter_as_it_was_and_a_rollback_restores_it() -> None:
    model = adapted()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = adamw(model)
    guard = GradientGuard(model, optimizer, GuardConfig(snapshot=SnapshotConfig(every_steps=10)))
    assert not frozen & set(guard.layer_norms), "only the adapter is watched"
    at: dict[int, dict[str, torch.Tensor]] = {0: state(model)}
    reports = []
    for number in range(60):
        before = state(model)
        optimizer.zero_grad()
        loss = model(**batch(number)).loss
        guard.backward(loss * torch.nan if number == BAD else loss)
        reports.append(guard.step())
        at[guard.steps] = state(model)
        if number == BAD:
            assert reports[-1].action == "skipped"
            assert not differences(before, at[guard.steps])
        if number == BAD + 10:  # damage as of a broken merge
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
    rollback = next(report for report in reports if report.action == "rolled_back")
    assert rollback.rolled_back_to is not None
    assert not differences(at[rollback.step], at[rollback.rolled_back_to])
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert reports[-1].action in ("applied", "clipped")


def test_a_second_adapter_takes_the_place_of_the_first() -> None:
    model = adapted()
    optimizer = adamw(model)
    guard = GradientGuard(model, optimizer, GuardConfig(clip=ClipConfig(max_norm=1e-3)))
    for number in range(40):
        if number == 20:
            model.add_adapter("second", model.peft_config["default"])
            model.set_adapter("second")
            optimizer.add_param_group({"params": [p for p in model.parameters() if p.requires_grad]})
        optimizer.zero_grad()
        guard.backward(model(**batch(number)).loss)
        report = guard.step()
    seen = [norm for name, norm in guard.layer_norms.items() if ".second." in name]
    assert sum(norm**2 for norm in seen) ** 0.5 == pytest.approx(report.grad_norm, rel=1e-5)
    assert report.grad_norm > 0
    assert report.action == "clipped"
