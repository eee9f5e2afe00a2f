"""Lightning's trainer with the callback: exact skips, rollbacks, and nothing at all while all is well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import problem
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from tests.guard.integrations.problem import BATCH, BATCHES, NEVER
from tests.guard.loops import but_for_update_norm, differences

pytest.importorskip("lightning", reason="needs the extra: pip install gradguard[lightning]")
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision

from guard import (
    BudgetConfig,
    ClipConfig,
    GuardConfig,
    GuardError,
    GuardHalt,
    Incident,
    RecoveryConfig,
    SnapshotConfig,
    StepReport,
)
from guard.integrations.lightning import GradientGuardCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Regression(LightningModule):
    def __init__(self, dropout: float = 0.1, interval: str = "step") -> None:
        super().__init__()
        self.net = problem.network(dropout)
        self.interval = interval

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = CosineAnnealingLR(optimizer, T_max=500)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}


class Watch(Callback):
    """What each attempt did and changed; breaks what its fault names."""

    def __init__(self, guard: GradientGuardCallback, fault: dict[str, Any] | None = None) -> None:
        self.guard, self.fault = guard, fault
        self.reports: list[StepReport] = []
        self.changes: list[list[str]] = []

    @property
    def actions(self) -> list[str]:
        return [report.action for report in self.reports]

    @property
    def incidents(self) -> list[Incident]:
        return [report.incident for report in self.reports if report.incident is not None]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        fault = {"kind": "nan_loss", "step": 10**9} if self.fault is None else self.fault
        self.faults = problem.injector(fault, module, trainer.optimizers[0])

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        assert self.guard.guard is not None
        self.before = state(trainer, module)
        self.faults.begin(self.guard.guard.steps)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        report = self.guard.report
        if report is not None and report not in self.reports[-1:]:
            self.reports.append(report)
            self.changes.append(differences(self.before, state(trainer, module)))


def state(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    return problem.state_of(module, trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler)


def loader(**options: Any) -> DataLoader:
    return DataLoader(TensorDataset(*problem.samples(**options)), batch_size=BATCH)


def fit(
    *callbacks: Callback,
    module: Regression | None = None,
    data: DataLoader | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> tuple[Trainer, Regression]:
    module = module or Regression()
    trainer = Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": 2, **options})
    torch.manual_seed(1)
    trainer.fit(module, data or loader(), ckpt_path=ckpt_path)
    return trainer, module


def callback(**settings: Any) -> GradientGuardCallback:
    clip = ClipConfig(max_norm=settings.pop("max_norm", NEVER))
    snapshot = SnapshotConfig(every_steps=10)
    return GradientGuardCallback(GuardConfig(clip=clip, snapshot=snapshot, **settings))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_idle_guard_leaves_every_bit_as_the_plain_trainer_has_it(accumulate: int) -> None:
    plain = fit(accumulate_grad_batches=accumulate, gradient_clip_val=NEVER)
    guard = callback()
    guarded = fit(guard, accumulate_grad_batches=accumulate)
    assert not differences(state(*plain), state(*guarded))
    assert guard.guard is not None
    assert guard.guard.steps == guard.guard.attempts == 2 * BATCHES // accumulate == plain[0].global_step


def test_a_limit_that_bites_gives_the_weights_of_the_plain_trainer() -> None:
    class Plain(Regression):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    guard = callback(max_norm=0.2)
    _, plain = fit(module=Plain(), gradient_clip_val=0.2)
    _, guarded = fit(guard, module=Plain())
    assert guard.report is not None
    assert guard.report.action == "clipped"
    for ours, reference in zip(guarded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_a_nan_batch_leaves_weights_moments_buffers_and_schedule_to_the_bit() -> None:
    guard = callback()
    watch = Watch(guard)
    trainer, module = fit(guard, watch, data=loader(bad_batch=20), max_epochs=1)
    assert [i for i, action in enumerate(watch.actions) if action != "applied"] == [20]
    assert watch.actions[20] == "skipped"
    assert [i for i, changed in enumerate(watch.changes) if not changed] == [20]
    assert guard.guard is not None
    assert guard.guard.steps == BATCHES - 1 == trainer.lr_scheduler_configs[0].scheduler.last_epoch
    assert problem.loss_of(module.net) < 1.1 * problem.loss_of(fit(max_epochs=1)[1].net)


@pytest.mark.parametrize("protected", [True, False])
def test_an_average_given_as_ema_learns_nothing_from_a_skipped_batch(protected: bool) -> None:
    module = Regression()
    average = AveragedModel(module.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    guard = GradientGuardCallback(GuardConfig(), **({"ema": average} if protected else {}))

    class Average(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            average.update_parameters(module.net)

    fit(guard, Average(), module=module, data=loader(bad_batch=20), max_epochs=1)
    assert average.n_averaged == BATCHES - protected


def test_an_unknown_option_is_refused_when_the_callback_is_made() -> None:
    with pytest.raises(TypeError, match="'jurnal'"):
        GradientGuardCallback(GuardConfig(), **{"jurnal": "incidents.jsonl"})


def test_one_bad_micro_batch_skips_its_window_only() -> None:
    guard = callback()
    watch = Watch(guard)
    data = loader(bad_batch=21)
    trainer, _ = fit(guard, watch, data=data, accumulate_grad_batches=4, max_epochs=1)
    assert watch.actions == ["applied"] * 5 + ["skipped"] + ["applied"] * 9
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 14


def test_the_loss_of_a_step_is_the_mean_over_its_micro_batches() -> None:
    class Given(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * 0 + float(batch_idx)

    guard = callback()
    watch = Watch(guard)
    fit(guard, watch, module=Given(), accumulate_grad_batches=4, max_epochs=1, limit_train_batches=10)
    assert [report.loss for report in watch.reports] == [1.5, 5.5, 8.5]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "bitflip_weight", "step": 65, "parameter": "net.4.weight"},
        {"kind": "lr_spike", "step": 65, "factor": 1e4},
    ],
    ids=lambda fault: str(fault["kind"]),
)
def test_damage_is_rolled_back_and_the_run_ends_like_a_clean_one(fault: dict[str, Any]) -> None:
    guard = callback()
    watch = Watch(guard, fault)
    trainer, module = fit(guard, watch)
    assert "rolled_back" in watch.actions
    back = next(report for report in watch.reports if report.action == "rolled_back")
    assert back.rolled_back_to == 60
    assert guard.guard is not None
    assert guard.guard.steps < guard.guard.attempts == trainer.global_step == 2 * BATCHES
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == guard.guard.steps
    assert problem.loss_of(module.net) < 1.3 * problem.loss_of(fit()[1].net)


def test_a_schedule_by_epoch_advances_with_the_epochs_whatever_is_skipped() -> None:
    trainer, _ = fit(callback(), module=Regression(interval="epoch"), data=loader(bad_batch=BATCHES - 1))
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_a_resumed_fit_ends_to_the_bit_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    data = loader(bad_batch=20)
    whole = callback()
    uninterrupted = fit(whole, module=Regression(dropout=0.0), data=data)
    trainer, _ = fit(callback(), module=Regression(dropout=0.0), data=data, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = callback()
    resumed = fit(second, module=Regression(dropout=0.0), data=data, ckpt_path=tmp_path / "half.ckpt")
    assert not differences(state(*uninterrupted), state(*resumed))
    assert whole.guard is not None
    assert second.guard is not None
    assert (second.guard.steps, second.guard.attempts) == (2 * BATCHES - 2, 2 * BATCHES)
    assert not but_for_update_norm(differences(whole.state_dict(), second.state_dict()))


def test_a_spent_budget_ends_the_fit_with_the_incident_and_healthy_weights(tmp_path: Path) -> None:
    journal = tmp_path / "incidents.jsonl"
    config = GuardConfig(budget=BudgetConfig(rollbacks=0), snapshot=SnapshotConfig(every_steps=10))
    guard = GradientGuardCallback(config, journal=journal, job="test")
    module = Regression()
    fault = {"kind": "bitflip_weight", "step": 65, "parameter": "net.4.weight"}
    with pytest.raises(GuardHalt, match="budget") as halt:
        fit(guard, Watch(guard, fault), module=module)
    assert halt.value.incident.action == "halted"
    assert any(json.loads(row).get("action") == "halted" for row in journal.read_text().splitlines())
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in module.parameters())
    assert guard.guard is not None
    assert guard.guard.steps == 60


def test_the_trainer_has_its_own_methods_back_after_a_fit() -> None:
    trainer, _ = fit(callback(), max_epochs=1)
    assert "optimizer_step" not in vars(trainer.strategy.precision_plugin)
    assert "update_lr_schedulers" not in vars(trainer.fit_loop.epoch_loop)


def test_what_the_guard_does_is_logged() -> None:
    trainer, _ = fit(callback(), data=loader(bad_batch=20), max_epochs=1, log_every_n_steps=1)
    logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("guard/")}
    assert logged["guard/steps"] == BATCHES - 1
    assert (logged["guard/skips"], logged["guard/rollbacks"], logged["guard/lr_scale"]) == (1, 0, 1)
    assert 0 < logged["guard/grad_norm"] < 10


def test_a_requested_stop_ends_the_fit_after_the_next_step() -> None:
    guard = callback()

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 7 and guard.guard is not None:
                guard.guard.request_stop()

    trainer, _ = fit(guard, Stop())
    assert trainer.global_step == 8


class GradientNorms(Callback):
    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        self.norms.append(float(nn.utils.get_total_norm(gradients)))


def test_a_loss_scaler_is_unchanged_by_a_skip_and_hooks_see_unscaled_gradients() -> None:
    def mixed() -> MixedPrecision:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
        return MixedPrecision("16-mixed", "cpu", scaler)

    plain = fit(plugins=mixed(), max_epochs=1)
    guard, norms = callback(), GradientNorms()
    watch = Watch(guard)
    guarded = fit(guard, watch, norms, plugins=mixed(), max_epochs=1)
    assert not differences(state(*plain), state(*guarded))
    assert norms.norms == pytest.approx([report.grad_norm for report in watch.reports], rel=1e-4)
    assert watch.reports[0].loss == pytest.approx(problem.loss_of(problem.network()), rel=0.5)

    trainer, _ = fit(callback(), plugins=mixed(), max_epochs=1, data=loader(bad_batch=20))
    scale = guarded[0].precision_plugin.scaler.get_scale()
    assert trainer.precision_plugin.scaler.get_scale() == scale


class TwoOptimizers(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([p], lr=0.1) for p in self.parameters()]


class OwnClipping(Regression):
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        pass


class SecondOrder(Regression):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.parametrize(
    ("make_module", "options", "message"),
    [
        (Regression, {"gradient_clip_val": 0.5}, r"gradient_clip_val is 0\.5.*max_norm=0\.5"),
        (TwoOptimizers, {}, "5 optimizers.*guards one optimizer"),
        (OwnClipping, {}, "configure_gradient_clipping is overridden"),
        (SecondOrder, {}, "LBFGS"),
    ],
)
def test_what_cannot_be_guarded_is_refused_with_what_to_do(
    make_module: Callable[[], Regression], options: dict[str, Any], message: str
) -> None:
    module = make_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(GuardError, match=message):
        fit(callback(), module=module, **options)
    assert not differences(before, dict(module.state_dict()))


def test_data_that_cannot_be_replayed_is_refused() -> None:
    with pytest.raises(GuardError, match=r"recovery\.data is replay"):
        callback(recovery=RecoveryConfig(data="replay"))
