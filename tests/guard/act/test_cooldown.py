"""What changes after a rollback, how strong it is, and how it fades."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from guard import GradientGuard, GuardConfig
from guard.act.cooldown import Cooldown
from guard.act.regularize import pull_, soft_threshold_
from guard.config import RecoveryConfig
from tests.guard.loops import guarded_run, sgd

COOLDOWN = 10


def problem(**config: Any) -> tuple[nn.Parameter, torch.optim.Optimizer, Cooldown]:
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    settings = {"anchor_l2": 0.0, "weight_decay_factor": 1.0, "cooldown_steps": COOLDOWN, **config}
    return weight, optimizer, Cooldown(RecoveryConfig.model_validate(settings), [weight])


def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer, recovery: Cooldown, grad: float) -> float:
    weight.grad = torch.tensor([grad])
    before = weight.item()
    with recovery.applied_to(optimizer):
        optimizer.step()
    return weight.item() - before


def test_the_learning_rate_fades_back_geometrically() -> None:
    weight, optimizer, recovery = problem(lr_backoff=0.25)
    recovery.begin()
    moved = [step(weight, optimizer, recovery, 1.0) for _ in range(COOLDOWN + 2)]
    expected = [-0.1 * 0.25 ** (max(0, COOLDOWN - i) / COOLDOWN) for i in range(COOLDOWN + 2)]
    assert moved == pytest.approx(expected, rel=1e-5)
    assert not recovery.active


def test_a_second_rollback_during_the_cooldown_presses_harder() -> None:
    *_, recovery = problem(lr_backoff=0.5)
    scales = []
    for _ in range(3):
        recovery.begin()
        scales.append(recovery.strengths()["lr_scale"])
    assert scales == [0.5, 0.25, 0.125]


def test_after_the_cooldown_a_rollback_starts_over() -> None:
    weight, optimizer, recovery = problem(lr_backoff=0.5)
    for _ in range(2):
        recovery.begin()
        assert recovery.strengths()["lr_scale"] == 0.5
        for _ in range(COOLDOWN):
            step(weight, optimizer, recovery, 0.0)


def test_the_anchor_pulls_by_the_closed_form() -> None:
    weight, optimizer, recovery = problem(lr_backoff=1.0, anchor_l2=2.0)
    recovery.begin()
    with torch.no_grad():
        weight.fill_(5.0)
    distance = 2.0
    for i in range(COOLDOWN):
        step(weight, optimizer, recovery, 0.0)
        distance *= 1 - 0.1 * 2.0 * (COOLDOWN - i) / COOLDOWN
        assert weight.item() - 3.0 == pytest.approx(distance, rel=1e-5)
    step(weight, optimizer, recovery, 0.0)
    assert weight.item() - 3.0 == pytest.approx(distance, rel=1e-5)


def test_the_pull_never_overshoots_the_anchor() -> None:
    weight, optimizer, recovery = problem(anchor_l2=1e9)
    recovery.begin()
    with torch.no_grad():
        weight.fill_(5.0)
    step(weight, optimizer, recovery, 0.0)
    assert weight.item() == 3.0


def test_weight_decay_is_stronger_and_fades() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=0.5)
    config = RecoveryConfig(lr_backoff=1.0, weight_decay_factor=4.0, anchor_l2=0.0, cooldown_steps=2)
    recovery = Cooldown(config, [weight])
    recovery.begin()
    assert step(weight, optimizer, recovery, 0.0) == pytest.approx(-0.1 * 0.5 * 4.0)
    before = weight.item()
    assert step(weight, optimizer, recovery, 0.0) == pytest.approx(-0.1 * 0.5 * 2.0 * before)
    before = weight.item()
    assert step(weight, optimizer, recovery, 0.0) == pytest.approx(-0.1 * 0.5 * before)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_a_group_without_weight_decay_gets_none() -> None:
    weight, optimizer, recovery = problem(lr_backoff=1.0, weight_decay_factor=10.0)
    recovery.begin()
    assert step(weight, optimizer, recovery, 0.0) == 0.0


def test_l1_gives_exact_zeros_and_keeps_frozen_weights() -> None:
    weight = nn.Parameter(torch.tensor([0.04, -0.04, 1.0, -1.0]))
    frozen = nn.Parameter(torch.tensor([0.01]), requires_grad=False)
    optimizer = torch.optim.SGD([weight, frozen], lr=0.1)
    config = RecoveryConfig(lr_backoff=1.0, anchor_l2=0.0, l1=0.5, cooldown_steps=1)
    recovery = Cooldown(config, [weight])
    recovery.begin()
    weight.grad = torch.zeros(4)
    with recovery.applied_to(optimizer):
        optimizer.step()
    assert weight.tolist() == pytest.approx([0.0, 0.0, 0.95, -0.95])
    assert (weight[:2] == 0.0).all()
    assert frozen.tolist() == pytest.approx([0.01])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_soft_threshold_agrees_with_its_definition(dtype: torch.dtype) -> None:
    weight = torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = weight.sign() * (weight.abs() - 0.3).clamp(min=0)
    soft_threshold_([weight], 0.3)
    rtol, atol = (8e-3, 2e-3) if dtype == torch.bfloat16 else (1e-6, 1e-6)
    torch.testing.assert_close(weight, expected, rtol=rtol, atol=atol)


def test_a_zero_strength_touches_nothing() -> None:
    weight = torch.ones(3)
    version = weight._version
    pull_([weight], [torch.zeros(3)], 0.0)
    soft_threshold_([weight], 0.0)
    assert weight._version == version


def test_without_a_cooldown_nothing_changes() -> None:
    weight, optimizer, recovery = problem(lr_backoff=0.1, cooldown_steps=0)
    recovery.begin()
    assert not recovery.active
    assert step(weight, optimizer, recovery, 1.0) == pytest.approx(-0.1, rel=1e-5)


def test_the_settings_are_put_back_when_the_optimizer_fails() -> None:
    _, optimizer, recovery = problem()
    recovery.begin()

    def fail() -> None:
        with recovery.applied_to(optimizer):
            assert optimizer.param_groups[0]["lr"] == 0.05
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_resumed_cooldown_continues_identically() -> None:
    whole, resumed = problem(anchor_l2=1.0), problem(anchor_l2=1.0)
    whole[2].begin()
    for _ in range(4):
        step(*whole, 1.0)
    resumed[2].load_state_dict(whole[2].state_dict())
    with torch.no_grad():
        resumed[0].copy_(whole[0])
    for _ in range(COOLDOWN):
        assert step(*resumed, 1.0) == step(*whole, 1.0)


def recovering(**recovery: Any) -> Any:
    """Two rollbacks, one after the other: the first only moves past the data."""
    config = {
        "snapshot": {"every_steps": 10},
        "budget": {"consecutive_skips": 1},
        "recovery": {"cooldown_steps": 20, **recovery},
    }
    return guarded_run(config, sgd, faults=[{"kind": "nan_loss", "step": 15, "times": 2}])


def test_a_schedule_that_builds_on_the_last_rate_never_sees_the_scaled_one() -> None:
    run = recovering(lr_backoff=0.1).train(40)
    undisturbed = guarded_run(None, sgd).train(40)
    assert run.optimizer.param_groups[0]["lr"] == undisturbed.optimizer.param_groups[0]["lr"]
    assert run.scheduler.state_dict() == undisturbed.scheduler.state_dict()
    rolled_back = [i for i, r in enumerate(run.reports) if r.action == "rolled_back"][-1]
    scales = [r.recovery["lr_scale"] for r in run.reports[rolled_back:]]
    assert scales[0] == pytest.approx(0.1)
    assert scales == sorted(scales)
    assert scales[20:] == [1.0] * len(scales[20:])


def test_the_incident_names_the_measures_and_their_end() -> None:
    run = recovering(l1=0.001).train(16)
    first, incident = [r.incident for r in run.reports if r.action == "rolled_back"]
    assert (first.recovery.lr_scale, first.recovery.anchor_l2, first.recovery.until_step) == (1.0, 0.0, 10)
    assert incident.recovery.to_row() == {
        "lr_scale": 0.5,
        "rate_factor": 1.0,
        "weight_decay_scale": 2.0,
        "anchor_l2": 0.01,
        "l1": 0.001,
        "until_step": 30,
        "data": "advance",
    }


def test_one_transient_fault_changes_nothing_but_the_place_in_the_data() -> None:
    config = {"snapshot": {"every_steps": 10}, "budget": {"consecutive_skips": 1}}
    run = guarded_run(config, sgd, faults=[{"kind": "nan_loss", "step": 15}]).train(40)
    assert sum(r.action == "rolled_back" for r in run.reports) == 1
    assert {r.recovery["lr_scale"] for r in run.reports} == {1.0}
    assert {r.recovery["anchor_l2"] for r in run.reports} == {0.0}


def test_a_second_rollback_outside_the_window_is_a_first_one() -> None:
    config = {"snapshot": {"every_steps": 10}, "budget": {"consecutive_skips": 1, "window_steps": 20}}
    faults = [{"kind": "nan_loss", "step": step} for step in (15, 55)]
    run = guarded_run(config, sgd, faults=faults).train(70)
    back = [r.recovery["lr_scale"] for r in run.reports if r.action == "rolled_back"]
    assert back == [1.0, 1.0]


def test_a_rate_that_jumped_is_cut_by_the_first_rollback() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate({"snapshot": {"every_steps": 10}}))
    x, y = torch.randn(64, 8), torch.randn(64, 4)
    reports = []
    for attempt in range(60):
        optimizer.param_groups[0]["lr"] = 500.0 if attempt == 40 else 0.05
        optimizer.zero_grad()
        guard.backward(nn.functional.mse_loss(model(x), y))
        reports.append(guard.step())
    back = [r.recovery["lr_scale"] for r in reports if r.action == "rolled_back"]
    assert back == [0.5]


def test_every_rollback_in_a_cooldown_lowers_the_rate_again() -> None:
    config = {"snapshot": {"every_steps": 10}, "budget": {"consecutive_skips": 1, "rollbacks": 5}}
    run = guarded_run(config, faults=[{"kind": "nan_loss", "step": 15, "times": 3}]).train(16)
    scales = [r.recovery["lr_scale"] for r in run.reports if r.action == "rolled_back"]
    assert scales[:2] == [1.0, 0.5]
    assert scales[2] < scales[1]
