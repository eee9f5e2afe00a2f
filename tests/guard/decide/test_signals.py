"""Damage that neither loss nor gradient shows: to buffers, weights, moments, averaged weights, layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from guard import GradientGuard, GuardConfig, GuardMetrics
from guard.act.buffers import BufferShield, is_watched
from guard.faults.injector import flip_bit_
from guard.observe.displacement import Displacement
from tests.guard.loops import Run, adamw, differences, guarded_run, sgd

WATCHFUL: dict[str, Any] = {"snapshot": {"every_steps": 20}, "update_norm": 5, "clip": {"kind": "auto"}}


def normed(seed: int = 0) -> nn.Module:
    """Normalized right at the input: whatever the inputs are multiplied with, loss and gradients stay."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def batch(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(i))
    return x, x.sum(1, keepdim=True).tanh()


def step(guard: GradientGuard, model: nn.Module, i: int, scale: float = 1.0) -> Any:
    x, y = batch(i)
    model.zero_grad()
    guard.backward(nn.functional.mse_loss(model(x * scale), y))
    return guard.step()


def test_a_batch_that_poisons_batchnorm_alone_is_skipped() -> None:
    """Loss and gradient are those of any batch; the running variance would have been ruined."""
    model = normed()
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.05), GuardConfig())
    for i in range(60):
        assert step(guard, model, i).action in ("applied", "clipped")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = step(guard, model, 60, scale=1e4)
    assert (report.action, report.verdict.kind, report.verdict.signal) == ("skipped", "suspect", "buffers")
    assert not differences(before, dict(model.state_dict()))
    assert [step(guard, model, i).action for i in range(61, 70)].count("skipped") == 0


def test_a_short_last_batch_is_not_called_poisonous() -> None:
    model = normed()
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.05), GuardConfig())
    for i in range(120):
        x, y = batch(i)
        rows = 6 if i % 20 == 19 else 64
        model.zero_grad()
        guard.backward(nn.functional.mse_loss(model(x[:rows]), y[:rows]))
        assert guard.step().verdict.signal != "buffers"


def test_weights_that_are_written_to_before_the_first_step_change_no_measure_of_the_buffers() -> None:
    """A pre-flight does, which a job that starts again does not repeat."""
    jumps: list[list[float | None]] = []
    for written in (False, True):
        model = normed()
        guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.05), GuardConfig())
        if written:
            with torch.no_grad():
                model[1].weight.add_(0.0)
        jumps.append([step(guard, model, i).buffer_jump for i in range(8)])
    assert jumps[0] == jumps[1]
    assert None not in jumps[0]


@pytest.mark.parametrize("name", ["causal mask", "counter"])
def test_constant_buffers_do_not_move(name: str) -> None:
    model = nn.Linear(2, 2)
    values = {"causal mask": torch.full((4, 4), -torch.inf).triu(1), "counter": torch.tensor(3)}
    model.register_buffer("extra", values[name])
    shield = BufferShield(model)
    assert shield.jump() is None


def test_a_jump_is_measured_in_units_of_each_buffer() -> None:
    model = nn.Module()
    model.register_buffer("small", torch.full((4,), 1.0))
    model.register_buffer("large", torch.full((4,), 1000.0))
    shield = BufferShield(model)
    model.small += 0.5
    jump = shield.jump()
    assert jump is not None
    assert float(jump) == pytest.approx(0.5, rel=1e-2)
    shield.accept()
    model.large += 500.0
    jump = shield.jump()
    assert jump is not None
    assert float(jump) == pytest.approx(0.5, rel=1e-2)


def flipped_weight(run: Run) -> None:
    flip_bit_(next(iter(run.model.parameters())).data, 3, 30)


def scaled_weights(run: Run) -> None:
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(30.0)


def flipped_moment(run: Run) -> None:
    state = run.optimizer.state[next(iter(run.model.parameters()))]
    flip_bit_(state["exp_avg"], 3, 30)


@pytest.mark.parametrize("damage", [flipped_weight, scaled_weights, flipped_moment])
def test_damage_to_the_state_is_rolled_back(damage: Any) -> None:
    run = guarded_run({**WATCHFUL, "recovery": {"cooldown_steps": 0}}, adamw).train(50)
    damage(run)
    actions = [run.attempt().action for _ in range(12)]
    assert "rolled_back" in actions
    back = next(r for r in run.reports if r.action == "rolled_back")
    assert back.rolled_back_to == 40
    assert all(torch.isfinite(p).all() and p.abs().max() < 100 for p in run.model.parameters())


def test_damage_behind_a_normalization_shows_in_the_update_norm_alone() -> None:
    """A linear layer before LayerNorm may be scaled at will: neither loss nor output changes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate(WATCHFUL))
    for i in range(82):
        step(guard, model, i)
    with torch.no_grad():
        model[0].weight.mul_(1000.0)
    reports = [step(guard, model, i) for i in range(82, 90)]
    back = [r for r in reports if r.action == "rolled_back"]
    assert [(r.verdict.signal, r.rolled_back_to) for r in back] == [("update_norm", 80)]
    assert float(model[0].weight.detach().abs().max()) < 5


@pytest.mark.parametrize("optimizer", [adamw, sgd])
def test_the_update_norm_is_the_distance_of_a_step_and_the_ratio_compares_it(
    optimizer: Any,
) -> None:
    run = guarded_run({"update_norm": "always"}, optimizer, metrics=GuardMetrics(job="test"))
    run.train(3)
    weights = [p.detach().clone() for p in run.model.parameters()]
    run.train(4)
    moved = torch.stack(
        [(p - w).detach().norm() for p, w in zip(run.model.parameters(), weights, strict=True)]
    ).norm()
    weight_norm = torch.stack([p.detach().norm() for p in run.model.parameters()]).norm()
    report = run.attempt()
    assert report.update_norm == pytest.approx(float(moved), rel=1e-4)
    assert report.update_ratio == pytest.approx(float(moved / weight_norm), rel=1e-4)
    assert report.to_row()["update_ratio"] == report.update_ratio
    assert run.guard is not None
    assert run.guard.metrics is not None
    values = run.guard.metrics.snapshot()["values"]
    assert (values["update_norm"], values["update_ratio"]) == (report.update_norm, report.update_ratio)


def test_the_update_ratio_is_recorded_only_where_it_is_measured() -> None:
    reports = guarded_run({"update_norm": 5}, sgd).train(20).reports
    measured = [r.attempt for r in reports if r.update_ratio is not None]
    assert 3 <= len(measured) < 20
    assert all(("update_ratio" in r.to_row()) == (r.attempt in measured) for r in reports)


def test_large_and_strided_weights_are_measured_whole() -> None:
    big = nn.Parameter(torch.zeros(700, 900))
    strided = nn.Parameter(torch.zeros(40, 30).t())
    optimizer = torch.optim.SGD([big, strided], lr=0.1)
    moved = Displacement([big, strided], optimizer, 4)
    moved.start(0)
    with torch.no_grad():
        big += 0.5
        strided += 1.0
    distance = (0.25 * big.numel() + strided.numel()) ** 0.5
    measured = moved.measure(4)
    assert measured.per_step == pytest.approx(distance / 4, rel=1e-5)
    assert measured.per_lr == pytest.approx(distance / 0.4, rel=1e-5)
    assert measured.ratio == pytest.approx(1 / 4, rel=1e-5)  # the weights were zero: all of them moved
    assert moved.measure(8) == (0.0, 0.0, 0.0)


def test_a_dead_layer_is_reported_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.01), GuardConfig(dead_steps=10))
    incidents = []
    for i in range(40):
        x, y = batch(i)
        model.zero_grad()
        guard.backward(nn.functional.mse_loss(model(x), y))
        report = guard.step()
        assert report.applied
        incidents += [] if report.incident is None else [report.incident]
    dead = [incident for incident in incidents if "no gradient" in incident.reason]
    assert len(dead) == 1
    assert "0.weight" in dead[0].reason


def test_a_parameter_that_takes_no_part_is_not_called_dead() -> None:
    model = nn.Sequential(nn.Linear(8, 1))
    model.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.01), GuardConfig(dead_steps=5))
    for i in range(30):
        assert step(guard, model, i).incident is None


def test_averaged_weights_do_not_learn_from_a_skipped_batch() -> None:
    """Updated after every step, as most loops do it: after a skip too."""
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.05), ema=ema)
    reference: dict[str, torch.Tensor] = {}
    for i in range(20):
        x, y = batch(i)
        model.zero_grad()
        bad = i == 15
        guard.backward(nn.functional.mse_loss(model(x * (float("nan") if bad else 1.0)), y))
        if i == 16:
            assert not differences(reference, dict(ema.state_dict()))
        assert guard.step().applied is not bad
        if bad:
            reference = {k: v.clone() for k, v in ema.state_dict().items()}
        ema.update_parameters(model)


def test_an_incident_names_the_signal_that_moved_first() -> None:
    run = guarded_run({"clip": {"kind": "auto"}}, adamw, faults=[{"kind": "nan_loss", "step": 30}]).train(32)
    incidents = [r.incident for r in run.reports if r.incident is not None]
    assert incidents[0].moved_first is not None
    assert (incidents[0].moved_first["signal"], incidents[0].moved_first["attempt"]) == ("loss", 31)


class Codebook(nn.Module):
    """Vector-quantized: half of the codes are drawn again every 60 forwards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(16, 8), nn.Linear(8, 16)
        self.register_buffer("codes", torch.randn(32, 8) * 0.1)
        self.register_buffer("uses", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        latents = self.encoder(inputs)
        nearest = torch.cdist(latents, self.codes).argmin(1)
        with torch.no_grad():
            self.uses += 1
            self.codes.mul_(0.999)
            if self.uses % 60 == 0:
                self.codes[16:] = latents[torch.randint(len(latents), (16,))]
        return self.decoder(latents + (self.codes[nearest] - latents).detach())


def codebook_run(**config: Any) -> list[Any]:
    model, data = Codebook(), torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    guard = GradientGuard(model, torch.optim.Adam(model.parameters(), lr=1e-3), GuardConfig(**config))
    reports = []
    for _ in range(400):
        rows = torch.randint(512, (64,))
        model.zero_grad()
        guard.backward((model(data[rows]) - data[rows]).square().mean())
        reports.append(guard.step())
    return reports


def test_a_buffer_that_jumps_by_design_is_skipped_twice_and_then_accepted() -> None:
    reports = codebook_run()
    assert [r.action for r in reports].count("rolled_back") == 0
    assert [r.action for r in reports].count("skipped") <= 2
    assert [r.verdict.signal for r in reports if r.verdict.kind == "drift"] == ["buffers"]


@pytest.mark.parametrize("times", [3, 6])
def test_running_statistics_never_jump_by_design(times: int) -> None:
    """Bad batches in a row spoil BatchNorm's alike; the codebook's exception is not theirs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    guard = GradientGuard(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    teacher, actions = torch.randn(8, 4), []
    for i in range(80):
        x = torch.randn(64, 8)
        model.zero_grad()
        bad = 50 <= i < 50 + times
        guard.backward(F.cross_entropy(model(1000 * x if bad else x), (x @ teacher).argmax(1)))
        actions.append(guard.step().action)
    assert set(actions[50 : 50 + times]) <= {"skipped", "rolled_back"}
    assert actions.count("skipped") + actions.count("rolled_back") == times
    assert float(model[1].running_var.max()) < 10


def test_buffers_that_are_not_watched_never_cause_a_skip() -> None:
    reports = codebook_run(watch_buffers=("*", "!codes"))
    assert not any(r.verdict.signal == "buffers" for r in reports)


def test_patterns_select_the_buffers_that_are_watched() -> None:
    patterns = ("*", "!*codes", "first.codes")
    watched = [is_watched(name, patterns) for name in ("bn.running_mean", "vq.codes", "first.codes")]
    assert watched == [True, False, True]
    assert not is_watched("bn.running_mean", ())


def test_a_buffer_that_is_not_watched_is_restored_all_the_same() -> None:
    model = normed()
    shield = BufferShield(model, ("!*",))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(64, 8) * 1e3)
    assert shield.jump() is None
    shield.revert()
    assert not differences(before, dict(model.named_buffers()))
