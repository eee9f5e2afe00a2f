"""What people use Lightning with: the guard does not change it, and acts in it."""

from __future__ import annotations

from typing import Any

import problem
import pytest
import torch
from torch import nn

from tests.guard.integrations.problem import BATCHES, NEVER
from tests.guard.loops import differences

pytest.importorskip("lightning", reason="needs the extra: pip install gradguard[lightning]")
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from lightning.pytorch.callbacks.finetuning import BaseFinetuning

from guard import ClipConfig, GradientGuard, GuardConfig, GuardError, SnapshotConfig
from guard.integrations.lightning import GradientGuardCallback
from tests.guard.integrations.test_lightning import Regression, Watch, callback, fit, loader, pytestmark

__all__ = ["pytestmark"]


class Finetuned(Regression):
    """The first layer is frozen until the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.net[0]

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-2)


def backbone() -> BaseFinetuning:
    return BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3)


def averaging() -> Callback:
    return StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)


class DropGradients(Callback):
    """Lightning steps with the gradients of the epoch before while it only updates averaged statistics."""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        trainer.optimizers[0].zero_grad()


VARIANTS: dict[str, Any] = {
    "accumulation schedule": lambda: (GradientAccumulationScheduler({0: 2, 1: 4}), Regression()),
    "backbone finetuning": lambda: (backbone(), Finetuned()),
    "weight averaging": lambda: (averaging(), Regression(interval="epoch")),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_an_idle_guard_changes_nothing(name: str) -> None:
    other, module = VARIANTS[name]()
    _, plain = fit(other, DropGradients(), module=module, max_epochs=3, gradient_clip_val=NEVER)
    other, module = VARIANTS[name]()
    guard = callback()
    _, guarded = fit(guard, other, DropGradients(), module=module, max_epochs=3)
    assert not differences(dict(plain.state_dict()), dict(guarded.state_dict()))
    assert guard.guard is not None
    assert guard.guard.totals.incidents == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_a_nan_batch_is_skipped(name: str) -> None:
    other, module = VARIANTS[name]()
    guard = callback()
    _, guarded = fit(guard, other, module=module, max_epochs=2, data=loader(bad_batch=20))
    assert guard.guard is not None
    found = sum(kinds["nonfinite"] for kinds in guard.guard.totals.anomalies.values())
    assert found == guard.guard.totals.skips >= 1
    assert all(bool(value.isfinite().all()) for value in guarded.parameters())


def test_half_precision_with_its_scaler_trains_as_without_the_guard() -> None:
    _, plain = fit(precision="bf16-mixed", gradient_clip_val=NEVER)
    _, guarded = fit(callback(), precision="bf16-mixed")
    assert not differences(dict(plain.state_dict()), dict(guarded.state_dict()))


class Adversarial(LightningModule):
    """Two optimizers, stepped by hand; with a guard each, as the guard's README has it."""

    def __init__(self, *, guarded: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = problem.network(), nn.Linear(8, 4)
        self.guarded = guarded
        self.guards: dict[str, GradientGuard] = {}

    def on_fit_start(self) -> None:
        if self.guarded:
            config = GuardConfig(clip=ClipConfig(max_norm=NEVER), snapshot=SnapshotConfig(every_steps=10))
            first, second = (wrapped.optimizer for wrapped in self.optimizers())
            self.guards["first"] = GradientGuard(self.first, first, config, job="first")
            self.guards["second"] = GradientGuard(self.second, second, config, job="second")

    def training_step(self, batch: Any, _: int) -> None:
        inputs, targets = batch
        for name, optimizer in zip(("first", "second"), self.optimizers(), strict=True):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(getattr(self, name)(inputs), targets)
            if self.guarded:
                self.guards[name].backward(loss)
                self.guards[name].step()
            else:
                self.manual_backward(loss)
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(part.parameters(), lr=1e-2) for part in (self.first, self.second)]


def manual(module: LightningModule, **data: Any) -> LightningModule:
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **options)
    torch.manual_seed(1)
    trainer.fit(module, loader(**data))
    return module


def test_several_optimizers_stepped_by_hand_have_a_guard_each() -> None:
    plain, guarded = manual(Adversarial(guarded=False)), manual(Adversarial(guarded=True))
    assert not differences(dict(plain.state_dict()), dict(guarded.state_dict()))
    bad = manual(Adversarial(guarded=True), bad_batch=20)
    assert isinstance(bad, Adversarial)
    assert {name: guard.totals.skips for name, guard in bad.guards.items()} == {"first": 1, "second": 1}
    assert all(bool(value.isfinite().all()) for value in bad.state_dict().values())


def test_the_callback_refuses_several_optimizers_with_what_to_write() -> None:
    with pytest.raises(GuardError, match="in training_step"):
        fit(GradientGuardCallback(), module=Adversarial(guarded=False))  # type: ignore[arg-type]


def test_an_accumulation_schedule_reports_the_mean_loss_of_its_micro_batches() -> None:
    guard = callback()
    trainer, _ = fit(guard, GradientAccumulationScheduler({0: 2, 1: 4}), max_epochs=2)
    assert guard.guard is not None
    assert guard.guard.attempts == BATCHES // 2 + BATCHES // 4 == trainer.global_step
    assert guard.report is not None
    assert 0.0 < guard.report.loss < 2.0


class Attentive(Regression):
    """The eight features are a sequence; the loop calls ``net``, not the module itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.net = nn.Sequential(
            nn.Unflatten(1, (8, 1)),
            nn.Linear(1, 8),
            nn.TransformerEncoder(layer, 2),
            nn.Flatten(),
            nn.Linear(64, 4),
        )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_attention_logits_are_watched_without_a_trace(precision: Any) -> None:
    watching = callback(attention={"action": "watch", "every": 10})
    watch = Watch(watching)
    options: dict[str, Any] = {"max_epochs": 1, "precision": precision}
    plain = fit(module=Attentive(), gradient_clip_val=NEVER, **options)
    guarded = fit(watching, watch, module=Attentive(), **options)
    logits = [report.attention_logit for report in watch.reports]
    assert [i for i, logit in enumerate(logits) if logit is not None] == [*range(0, BATCHES, 10)]
    one, other = (run[1].state_dict() for run in (plain, guarded))
    assert all(torch.equal(one[name], other[name]) for name in one)
