"""A mistake in the loop around the guard is found where it is made, by a line that says what to write."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, StepLR

from guard import GradientGuard, GuardConfig, GuardError

OFF = GuardConfig.model_validate({"clip": {"kind": "off"}})


class Loop:
    """A small guarded run, with the pieces that a loop may use wrongly."""

    def __init__(self, *, scheduled: bool = False, scaler: torch.amp.GradScaler | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.scheduler: LRScheduler | None = StepLR(self.optimizer, 10) if scheduled else None
        self.guard = GradientGuard(self.model, self.optimizer, OFF, scheduler=self.scheduler, scaler=scaler)

    def loss(self) -> Tensor:
        return self.model(torch.ones(8, 4)).square().mean()

    def attempt(self) -> str:
        self.optimizer.zero_grad()
        self.guard.backward(self.loss())
        return self.guard.step().action


@pytest.mark.parametrize("after", [True, False], ids=["after guard.step", "instead of it"])
def test_optimizer_step_beside_the_guards_is_refused_before_a_weight_changes(after: bool) -> None:
    loop = Loop()
    loop.optimizer.zero_grad()
    loop.guard.backward(loop.loss())
    if after:
        loop.guard.step()
    before = loop.model.weight.detach().clone()
    with pytest.raises(GuardError, match=r"optimizer\.step\(\) was called beside guard\.step\(\).*remove it"):
        loop.optimizer.step()
    assert torch.equal(before, loop.model.weight)


def test_scaler_step_beside_the_guards_is_refused() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    loop = Loop(scaler=scaler)
    loop.attempt()
    with pytest.raises(GuardError, match=r"scaler\.step\(\) and scaler\.update\(\) too"):
        scaler.step(loop.optimizer)


def test_a_plain_step_between_two_guarded_ones_is_warned_of_once() -> None:
    loop = Loop()
    loop.attempt()

    def plain() -> None:
        for _ in range(2):
            loop.optimizer.zero_grad()
            loop.loss().backward()
            loop.optimizer.step()

    with pytest.warns(UserWarning, match="that step is not guarded") as caught:
        plain()
    assert len(caught) == 1
    assert loop.attempt() == "applied"


@pytest.mark.parametrize("after", [True, False], ids=["after guard.step", "instead of it"])
def test_a_new_optimizer_beside_the_guard_is_refused_before_a_weight_changes(after: bool) -> None:
    loop = Loop()
    loop.attempt()
    newer = torch.optim.AdamW(loop.model.parameters())
    newer.zero_grad()
    loop.guard.backward(loop.loss())
    if after:
        loop.guard.step()
    before = loop.model.weight.detach().clone()
    with pytest.raises(GuardError, match=r"AdamW\.step\(\).*GradientGuard\(model, optimizer\)"):
        newer.step()
    assert torch.equal(before, loop.model.weight)


def test_another_optimizer_between_two_guarded_steps_is_warned_of_once() -> None:
    loop = Loop()
    loop.attempt()
    other = torch.optim.Adam(loop.model.parameters())

    def plain() -> None:
        for _ in range(2):
            other.zero_grad()
            loop.loss().backward()
            other.step()

    with pytest.warns(UserWarning, match=r"Adam\.step\(\).*that step is not guarded") as caught:
        plain()
    assert len(caught) == 1
    assert loop.attempt() == "applied"


def test_an_optimizer_that_computes_its_own_gradients_is_only_warned_of() -> None:
    """As of a last phase with L-BFGS, while the guard's gradients are still there."""
    loop = Loop()
    loop.attempt()
    polish = torch.optim.LBFGS(loop.model.parameters())

    def closure() -> Tensor:
        polish.zero_grad()
        loss = loop.loss()
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match=r"LBFGS\.step\(\).*that step is not guarded"):
        polish.step(closure)


def test_optimizers_with_guards_or_parameters_of_their_own_are_none_of_a_guard_s_concern() -> None:
    loop = Loop()
    loop.attempt()
    second = torch.optim.Adam(loop.model.parameters())
    guard = GradientGuard(loop.model, second, OFF)
    second.zero_grad()
    guard.backward(loop.loss())
    assert guard.step().applied
    other = nn.Linear(4, 1)
    loop.optimizer.zero_grad()
    loop.guard.backward(loop.loss())
    other(torch.ones(1, 4)).sum().backward()
    torch.optim.SGD(other.parameters()).step()
    assert loop.guard.step().applied


def test_after_a_guard_is_gone_any_optimizer_steps_its_parameters() -> None:
    loop = Loop()
    loop.attempt()
    loop.optimizer.zero_grad()
    loop.guard.backward(loop.loss())
    del loop.guard
    before = [parameter.detach().clone() for parameter in loop.model.parameters()]
    torch.optim.Adam(loop.model.parameters()).step()
    assert not all(map(torch.equal, before, loop.model.parameters()))


def test_the_hook_of_a_guard_that_is_gone_or_replaced_does_nothing() -> None:
    loop = Loop()
    loop.attempt()
    newer = GradientGuard(loop.model, loop.optimizer, OFF)
    loop.optimizer.zero_grad()
    newer.backward(loop.loss())
    assert newer.step().applied
    assert len(loop.optimizer._optimizer_step_pre_hooks) == 2, "one that checks, one that reads the rate"


def test_of_two_guards_of_one_optimizer_the_older_is_refused() -> None:
    loop = Loop()
    loop.attempt()
    GradientGuard(loop.model, loop.optimizer, OFF)
    with pytest.raises(GuardError, match="another guard was made for this optimizer since"):
        loop.attempt()


def test_a_forgotten_zero_grad_is_refused() -> None:
    loop = Loop()
    loop.attempt()
    with pytest.raises(GuardError, match=r"call optimizer\.zero_grad\(\) before.*accumulation.*weight=1 / k"):
        loop.guard.backward(loop.loss())


@pytest.mark.parametrize(
    "zero",
    [
        lambda loop: loop.optimizer.zero_grad(),
        lambda loop: loop.optimizer.zero_grad(set_to_none=False),
        lambda loop: [p.grad.data.zero_() for p in loop.model.parameters()],
        lambda loop: loop.model.zero_grad(),
    ],
)
def test_every_way_to_zero_gradients_is_one(zero: Callable[[Loop], Any]) -> None:
    loop = Loop()
    loop.attempt()
    for _ in range(3):
        zero(loop)
        loop.guard.backward(loop.loss())
        assert loop.guard.step().applied


def test_a_skip_needs_no_zero_grad() -> None:
    loop = Loop()
    loop.attempt()
    loop.optimizer.zero_grad()
    loop.guard.backward(loop.loss() * math.nan)
    assert loop.guard.step().action == "skipped"
    loop.guard.backward(loop.loss())
    assert loop.guard.step().applied


def test_a_loss_scaled_by_hand_is_refused_with_and_without_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loop = Loop(scaler=scaler)
    with pytest.raises(GuardError, match=r"scaled already.*guard\.backward\(loss\), without scaler\.scale"):
        loop.guard.backward(scaler.scale(loop.loss()) / 2)
    other = Loop()
    with pytest.raises(GuardError, match=r"pass scaler=scaler"):
        other.guard.backward(scaler.scale(other.loss() / 2))


def test_a_loss_with_a_factor_of_the_users_own_is_not_taken_for_a_scaled_one() -> None:
    loop = Loop(scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    loop.optimizer.zero_grad()
    loop.guard.backward(loop.loss() * torch.tensor(1024.0) * 0.5)
    assert loop.guard.step().applied


def test_losses_divided_by_hand_are_warned_of_once() -> None:
    loop = Loop()

    def accumulate() -> None:
        for _ in range(2):
            loop.optimizer.zero_grad()
            for _ in range(4):
                loop.guard.backward(loop.loss() / 4)
            loop.guard.step()

    with pytest.warns(UserWarning, match=r"divided by 4.*guard\.backward\(loss, weight=1 / 4\)") as caught:
        accumulate()
    assert [warning.filename for warning in caught] == [__file__]


def test_micro_batches_with_a_weight_and_other_factors_are_not_warned_of() -> None:
    loop = Loop()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            loop.optimizer.zero_grad()
            for _ in range(4):
                loop.guard.backward(loop.loss() * 0.5, weight=1 / 4)
            assert loop.guard.step().applied


def test_scheduler_step_beside_the_guards_is_refused() -> None:
    loop = Loop(scheduled=True)
    assert loop.scheduler is not None
    loop.attempt()
    loop.scheduler.step()
    with pytest.raises(GuardError, match=r'scheduler\.step\(\) was called.*state={"scheduler": scheduler}'):
        loop.attempt()


def test_a_schedule_that_is_loaded_is_not_taken_for_a_step() -> None:
    loop = Loop(scheduled=True)
    assert loop.scheduler is not None
    for _ in range(3):
        loop.attempt()
    loop.scheduler.load_state_dict({**loop.scheduler.state_dict(), "last_epoch": 40, "_step_count": 41})
    assert loop.attempt() == "applied"
    assert loop.scheduler.last_epoch == 41


def test_a_scheduler_that_the_guard_does_not_know_is_warned_of_once() -> None:
    loop = Loop()
    StepLR(loop.optimizer, 1)
    with pytest.warns(UserWarning, match="no rollback can restore it: pass scheduler=") as caught:
        actions = [loop.attempt() for _ in range(3)]
    assert actions == ["applied"] * 3
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.ones(8, requires_grad=True) * 1, r"shape \(8,\).*loss\.mean\(\)"),
        (1.5, "the loss is a float, not a tensor"),
        ({"loss": torch.ones(())}, "the loss is a dict"),
        (torch.ones(()), "requires no gradient: was it detached"),
        (torch.ones((), dtype=torch.complex64, requires_grad=True), "complex64"),
    ],
)
def test_a_loss_that_is_no_scalar_tensor_is_refused(loss: Any, message: str) -> None:
    loop = Loop()
    with pytest.raises(GuardError, match=message):
        loop.guard.backward(loss)
    assert loop.attempt() == "applied"


def bad_run(make: Callable[[Loop, Tensor], Callable[[], Any]], *, first: bool) -> list[str]:
    """Batch 20 is 10,000 times too large; ``first``: backward is called before the closure is given."""
    loop = Loop()
    actions = []
    for step in range(24):
        rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(step)) * (1e4 if step == 20 else 1)
        loop.optimizer.zero_grad()
        if first:
            loop.guard.backward(loop.model(rows).square().mean())
        report = loop.guard.step(make(loop, rows))
        assert report.verdict.kind == "ok" or not report.faulty_ranks
        actions.append(report.action)
    return actions


def as_torch(loop: Loop, rows: Tensor) -> Callable[[], Any]:
    def closure() -> Tensor:
        loop.optimizer.zero_grad()
        loss: Tensor = loop.model(rows).square().mean()
        loss.backward()
        return loss

    return closure


def as_float(loop: Loop, rows: Tensor) -> Callable[[], Any]:
    inner = as_torch(loop, rows)
    return lambda: inner().item()


def by_guard(loop: Loop, rows: Tensor) -> Callable[[], Any]:
    def closure() -> Tensor:
        loss: Tensor = loop.model(rows).square().mean()
        loop.guard.backward(loss)
        return loss

    return closure


def only_loss(loop: Loop, rows: Tensor) -> Callable[[], Any]:
    return lambda: loop.model(rows).square().mean()


@pytest.mark.parametrize("make", [as_torch, as_float, by_guard, only_loss])
@pytest.mark.parametrize("first", [True, False], ids=["after backward", "alone"])
def test_every_form_of_closure_gives_the_same_run(make: Any, first: bool) -> None:
    actions = bad_run(make, first=first)
    assert actions[20] in ("skipped", "rolled_back")
    assert actions == bad_run(only_loss, first=True)


def test_a_closure_that_runs_backward_on_an_unscaled_loss_is_refused() -> None:
    loop = Loop(scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    with pytest.raises(GuardError, match=r"the closure ran loss\.backward"):
        loop.guard.step(as_torch(loop, torch.ones(8, 4)))
