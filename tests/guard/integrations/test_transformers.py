"""Hugging Face's trainer, guarded: exact skips, rollbacks, and nothing at all while all is well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import problem
import pytest
import torch
from torch import Tensor, nn

from tests.guard.integrations.problem import BATCH, BATCHES, NEVER
from tests.guard.loops import but_for_update_norm, differences

pytest.importorskip("transformers", reason="needs the extra: pip install gradguard[transformers]")
pytest.importorskip("accelerate", reason="needs the extra: pip install gradguard[transformers]")
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from guard import (
    BudgetConfig,
    ClipConfig,
    GuardConfig,
    GuardError,
    GuardHalt,
    Incident,
    RecoveryConfig,
    SnapshotConfig,
)
from guard.integrations.transformers import GuardedTrainer

STEPS = 2 * BATCHES
Rows = list[dict[str, Any]]


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = problem.network()

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.net(inputs), targets)}


class Watch(TrainerCallback):
    """What each attempt did and changed; breaks what its fault names."""

    def __init__(self, fault: dict[str, Any] | None = None) -> None:
        self.fault = fault or {"kind": "nan_loss", "step": 10**9}
        self.trainer: Any = None
        self.faults: Any = None
        self.before: Any = None
        self.actions: list[str] = []
        self.losses: list[float] = []
        self.rolled_back_to: list[int] = []
        self.changes: list[list[str]] = []
        self.incidents: list[Incident] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        trainer = self.trainer
        if self.faults is None:
            self.faults = problem.injector(self.fault, trainer.model, trainer.optimizer.optimizer)
        self.before = state(trainer)
        self.faults.begin(0 if trainer.guard is None else trainer.guard.steps)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        report = self.trainer.report
        self.actions.append(report.action)
        self.losses.append(report.loss)
        if report.incident is not None:
            self.incidents.append(report.incident)
        if report.rolled_back_to is not None:
            self.rolled_back_to.append(report.rolled_back_to)
        self.changes.append(differences(self.before, state(self.trainer)))


def state(trainer: Trainer) -> dict[str, Any]:
    return problem.state_of(trainer.model, trainer.optimizer.optimizer, trainer.lr_scheduler)


def rows(**options: Any) -> Rows:
    return [{"inputs": x, "targets": y} for x, y in zip(*problem.samples(**options), strict=True)]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    settings = {
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": NEVER,
        "save_strategy": "no",
        "logging_steps": 10,
        "train_sampling_strategy": "sequential",
    }
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), **quiet, **{**settings, **options})


def plain_trainer(folder: Path, data: Rows | None = None, **options: Any) -> Trainer:
    return Trainer(Regression(), arguments(folder, **options), train_dataset=data or rows())


def guarded_trainer(
    folder: Path,
    data: Rows | None = None,
    *,
    model: nn.Module | None = None,
    watch: Watch | None = None,
    config: dict[str, Any] | None = None,
    journal: Path | None = None,
    **options: Any,
) -> GuardedTrainer:
    trainer = GuardedTrainer(
        model or Regression(),
        arguments(folder, **options),
        train_dataset=data or rows(),
        callbacks=[] if watch is None else [watch],
        guard_config=GuardConfig(**{"snapshot": SnapshotConfig(every_steps=10), **(config or {})}),
        journal=journal,
    )
    if watch is not None:
        watch.trainer = trainer
    return trainer


def run(trainer: Trainer, **options: Any) -> None:
    torch.manual_seed(1)
    trainer.train(**options)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_idle_guard_leaves_every_bit_as_the_plain_trainer_has_it(tmp_path: Path, accumulate: int) -> None:
    options = {"gradient_accumulation_steps": accumulate, "max_steps": 40}
    plain, guarded = plain_trainer(tmp_path, **options), guarded_trainer(tmp_path, **options)
    run(plain)
    run(guarded)
    assert not differences(state(plain), state(guarded))
    assert guarded.guard is not None
    assert guarded.guard.steps == guarded.guard.attempts == 40
    for ours, reference in zip(guarded.state.log_history[:-1], plain.state.log_history[:-1], strict=True):
        assert ours.items() >= {k: v for k, v in reference.items() if k != "grad_norm"}.items()
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("clip", [None, ClipConfig(max_norm=0.2)])
def test_it_clips_to_the_limit_of_the_arguments_unless_the_guard_is_given_one(
    tmp_path: Path, clip: ClipConfig | None
) -> None:
    options = {"optim": "sgd", "max_steps": 40, "learning_rate": 0.05}
    plain = plain_trainer(tmp_path, max_grad_norm=0.2, **options)
    config = {} if clip is None else {"clip": clip}
    guarded = guarded_trainer(tmp_path, config=config, max_grad_norm=0.2 if clip is None else 7.0, **options)
    run(plain)
    run(guarded)
    assert guarded.report is not None
    assert guarded.report.action == "clipped"
    for ours, reference in zip(guarded.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_a_nan_batch_leaves_weights_moments_buffers_and_schedule_to_the_bit(tmp_path: Path) -> None:
    watch = Watch()
    trainer = guarded_trainer(tmp_path, rows(bad_batch=20), watch=watch, max_steps=BATCHES)
    run(trainer)
    assert [i for i, action in enumerate(watch.actions) if action != "applied"] == [20]
    assert watch.actions[20] == "skipped"
    assert [i for i, changed in enumerate(watch.changes) if not changed] == [20]
    assert trainer.guard is not None
    assert trainer.guard.steps == BATCHES - 1 == trainer.lr_scheduler.last_epoch
    assert trainer.state.log_history[-2]["guard_skips"] == 1
    plain = plain_trainer(tmp_path, max_steps=BATCHES)
    run(plain)
    assert problem.loss_of(trainer.model.net) < 1.1 * problem.loss_of(plain.model.net)


def test_one_bad_micro_batch_skips_its_window_only(tmp_path: Path) -> None:
    watch = Watch()
    options = {"gradient_accumulation_steps": 4, "max_steps": BATCHES // 4}
    trainer = guarded_trainer(tmp_path, rows(bad_batch=21), watch=watch, **options)
    run(trainer)
    assert watch.actions == ["applied"] * 5 + ["skipped"] + ["applied"] * 9
    assert [not changed for changed in watch.changes] == [action == "skipped" for action in watch.actions]
    assert trainer.lr_scheduler.last_epoch == 14


def test_the_loss_of_a_step_is_the_mean_over_a_window_even_if_the_last_one_is_short(tmp_path: Path) -> None:
    class Given(Regression):
        def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
            return {"loss": super().forward(inputs, targets)["loss"] * 0 + targets.mean()}

    data = [
        {"inputs": torch.ones(8), "targets": torch.full((4,), float(i // BATCH))} for i in range(10 * BATCH)
    ]
    watch = Watch()
    options = {"gradient_accumulation_steps": 4, "max_steps": 3}
    run(guarded_trainer(tmp_path, data, model=Given(), watch=watch, **options))
    assert watch.losses == [1.5, 5.5, 8.5]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "bitflip_weight", "step": 65, "parameter": "net.4.weight"},
        {"kind": "lr_spike", "step": 65, "factor": 1e4},
    ],
    ids=lambda fault: str(fault["kind"]),
)
def test_damage_is_rolled_back_and_the_run_ends_like_a_clean_one(
    tmp_path: Path, fault: dict[str, Any]
) -> None:
    watch = Watch(fault)
    trainer = guarded_trainer(tmp_path, watch=watch)
    run(trainer)
    assert watch.rolled_back_to[0] == 60
    assert trainer.guard is not None
    assert trainer.guard.steps < trainer.guard.attempts == trainer.state.global_step == STEPS
    assert trainer.lr_scheduler.last_epoch == trainer.guard.steps
    assert trainer.state.log_history[-2]["guard_rollbacks"] == len(watch.rolled_back_to)
    plain = plain_trainer(tmp_path)
    run(plain)
    assert problem.loss_of(trainer.model.net) < 1.3 * problem.loss_of(plain.model.net)


def test_a_resumed_training_ends_to_the_bit_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": BATCHES, "data": rows(bad_batch=20)}
    whole = guarded_trainer(tmp_path, **options)
    run(whole)
    resumed = guarded_trainer(tmp_path, **options)
    run(resumed, resume_from_checkpoint=str(tmp_path / f"checkpoint-{BATCHES}"))
    assert not differences(state(whole), state(resumed))
    assert whole.guard is not None
    assert resumed.guard is not None
    assert (resumed.guard.steps, resumed.guard.attempts) == (STEPS - 2, STEPS)
    assert not but_for_update_norm(differences(whole.guard.state_dict(), resumed.guard.state_dict()))
    assert resumed.state.log_history[-2]["guard_skips"] == 2


def test_a_checkpoint_without_a_guard_is_resumed_with_a_new_one(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 10}
    run(plain_trainer(tmp_path, max_steps=10, **options))
    trainer = guarded_trainer(tmp_path, max_steps=20, **options)
    run(trainer, resume_from_checkpoint=True)
    assert trainer.guard is not None
    assert (trainer.guard.steps, trainer.state.global_step) == (10, 20)


def test_a_spent_budget_ends_the_training_and_then_raises_with_the_incident(tmp_path: Path) -> None:
    ended: list[int] = []

    class End(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ended.append(state.global_step)

    watch = Watch({"kind": "bitflip_weight", "step": 65, "parameter": "net.4.weight"})
    config = {"budget": BudgetConfig(rollbacks=0)}
    journal = tmp_path / "incidents.jsonl"
    trainer = guarded_trainer(tmp_path, watch=watch, config=config, journal=journal)
    trainer.add_callback(End())
    with pytest.raises(GuardHalt, match="budget") as halt:
        run(trainer)
    assert halt.value.incident.action == "halted"
    assert any(json.loads(row).get("action") == "halted" for row in journal.read_text().splitlines())
    assert trainer.guard is not None
    assert trainer.guard.steps == 60 == trainer.lr_scheduler.last_epoch
    assert ended == [trainer.guard.attempts]
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in trainer.model.parameters())


def test_the_accelerator_has_its_own_methods_back_and_can_train_again(tmp_path: Path) -> None:
    trainer = guarded_trainer(tmp_path, max_steps=10)
    run(trainer)
    assert not {"backward", "clip_grad_norm_"} & set(vars(trainer.accelerator))
    run(trainer)
    assert trainer.guard is not None
    assert trainer.guard.attempts == 10


def test_a_requested_stop_ends_the_training_after_the_next_step(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 7 and trainer.guard is not None:
                trainer.guard.request_stop()

    trainer = guarded_trainer(tmp_path)
    trainer.add_callback(Stop())
    run(trainer)
    assert trainer.state.global_step == 8


def test_a_language_model_with_uneven_micro_batches_survives_a_flipped_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    data = []
    for i in range(480):
        tokens = (torch.arange(16) * (1 + i % 3) + i) % 32
        labels = torch.where(torch.arange(16) < 4 + i % 13, tokens, -100)
        data.append({"input_ids": tokens, "labels": labels})
    fault = {"kind": "bitflip_weight", "step": 45, "parameter": "transformer.h.0.mlp.c_fc.weight"}
    watch = Watch(fault)
    size = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 90}
    options = {**size, "lr_scheduler_type": "constant", "logging_steps": 1}
    trainer = guarded_trainer(tmp_path, data, model=model, watch=watch, **options)
    run(trainer)
    assert set(watch.actions[:45]) == {"applied"}
    assert watch.actions[45] != "applied"
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in model.parameters())
    logged = [row["loss"] for row in trainer.state.log_history[:45]]
    assert watch.losses[:45] == pytest.approx(logged, rel=1e-5)
    assert sum(watch.losses[-5:]) / 5 < 0.5 * watch.losses[0]


def layerwise(folder: Path) -> GuardedTrainer:
    trainer = guarded_trainer(folder)
    trainer.args.optim = "galore_adamw_layerwise"
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    return trainer


def second_order(folder: Path) -> GuardedTrainer:
    trainer = guarded_trainer(folder)
    trainer.optimizer = torch.optim.LBFGS(trainer.model.parameters())
    return trainer


@pytest.mark.parametrize(
    ("make", "message"), [(layerwise, "updates the weights during backward"), (second_order, "LBFGS")]
)
def test_what_cannot_be_guarded_is_refused_with_what_to_do(
    tmp_path: Path, make: Callable[[Path], GuardedTrainer], message: str
) -> None:
    trainer = make(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(GuardError, match=message):
        run(trainer)
    assert not differences(before, dict(trainer.model.state_dict()))


def test_data_that_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=r"recovery\.data is replay"):
        guarded_trainer(tmp_path, config={"recovery": RecoveryConfig(data="replay")})
