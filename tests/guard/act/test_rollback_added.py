"""A rollback is exact whatever was added since the snapshot; a snapshot holds what can change."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from guard import GradientGuard, GuardConfig, StepReport
from tests.guard.loops import differences

ONE_SKIP = GuardConfig.model_validate({"budget": {"consecutive_skips": 1}, "snapshot": {"every_steps": 1000}})


def attempt(guard: GradientGuard, model: nn.Module, optimizer: Any, factor: float = 1.0) -> StepReport:
    optimizer.zero_grad()
    guard.backward(model(torch.randn(512, 4)).square().mean() * factor)
    return guard.step()


def test_weights_that_join_after_the_snapshot_go_back_to_what_they_were_when_they_joined() -> None:
    torch.manual_seed(0)
    backbone, head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1)
    model = nn.Sequential(backbone, head)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    first = {k: v.clone() for k, v in model.state_dict().items()}
    guard = GradientGuard(model, optimizer, ONE_SKIP)
    for _ in range(3):
        attempt(guard, model, optimizer)
    backbone.requires_grad_(True)
    optimizer.add_param_group({"params": backbone.parameters(), "lr": 5e-3})
    for _ in range(3):
        attempt(guard, model, optimizer)
    assert attempt(guard, model, optimizer, math.nan).rolled_back_to == 0
    assert not differences(first, dict(model.state_dict()))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 5e-3]
    assert not any(optimizer.state.get(p) for p in model.parameters())
    for _ in range(3):
        assert attempt(guard, model, optimizer).applied
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())  # whole: no state of a lost parameter


def test_a_group_that_is_removed_leaves_no_state_behind() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam([{"params": model[0].parameters()}, {"params": model[1].parameters()}])
    guard = GradientGuard(model, optimizer, ONE_SKIP)
    for _ in range(3):
        attempt(guard, model, optimizer)
    guard.snapshot()
    for _ in range(3):
        attempt(guard, model, optimizer)
    for parameter in optimizer.param_groups.pop(0)["params"]:
        del optimizer.state[parameter]
    assert attempt(guard, model, optimizer, math.nan).action == "rolled_back"
    assert len(optimizer.state_dict()["state"]) == 2


class Remembers(torch.optim.SGD):
    """Keeps a memory in its groups from its first step on, as D-Adaptation and Prodigy do."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            group["seen"] = group.get("seen", 0) + 1
        return super().step(closure)


def test_keys_that_the_optimizer_adds_to_its_groups_go_and_those_of_others_stay() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = Remembers(model.parameters(), lr=0.01)
    guard = GradientGuard(model, optimizer, ONE_SKIP)
    for step in range(4):
        attempt(guard, model, optimizer)
        if step == 1:
            optimizer.param_groups[0]["initial_lr"] = 0.01  # as a scheduler that is made in the middle does
    assert attempt(guard, model, optimizer, math.nan).rolled_back_to == 0
    assert "seen" not in optimizer.param_groups[0]
    assert optimizer.param_groups[0]["initial_lr"] == 0.01


def test_a_rate_that_is_a_tensor_is_restored_in_place() -> None:
    torch.manual_seed(0)
    model, rate = nn.Linear(4, 1), torch.tensor(0.01)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    guard = GradientGuard(model, optimizer, ONE_SKIP)
    attempt(guard, model, optimizer)
    rate.fill_(0.5)
    attempt(guard, model, optimizer, math.nan)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.01)


def test_a_schedule_by_epochs_in_state_is_rolled_back_with_its_rate() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    guard = GradientGuard(model, optimizer, ONE_SKIP, state={"scheduler": scheduler})
    for epoch in range(3):
        for _ in range(3):
            attempt(guard, model, optimizer)
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 ** (epoch + 1))
    assert attempt(guard, model, optimizer, math.nan).rolled_back_to == 0
    assert (scheduler.last_epoch, optimizer.param_groups[0]["lr"]) == (0, 0.1)
    attempt(guard, model, optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


class Masked(nn.Module):
    """Replaces its mask when the batch grows, also under ``inference_mode``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > len(self.mask):
            self.mask = torch.ones(len(inputs), dtype=torch.bool)
        return self.layer(inputs).masked_fill(~self.mask[: len(inputs), None], 0)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("rows", [16, 1 << 17])
def test_a_buffer_made_under_inference_mode_is_skipped_and_rolled_back_like_any_other(
    before: bool, rows: int
) -> None:
    torch.manual_seed(0)
    model = Masked()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def evaluate() -> None:
        with torch.inference_mode():
            model(torch.randn(rows, 4))

    if before:
        evaluate()
    guard = GradientGuard(model, optimizer)
    actions: list[str] = []
    for step in range(8):
        if step == 2 and not before:
            evaluate()
        actions.append(attempt(guard, model, optimizer, math.nan if step in (3, 4, 5) else 1.0).action)
    assert actions[3:6] == ["skipped", "skipped", "rolled_back"]
    assert {actions[6], actions[7]} <= {"applied", "clipped"}
    assert bool(model.mask.all())


@pytest.mark.parametrize("closures", [True, False])
def test_a_model_can_be_saved_whole_and_copied_at_any_time(closures: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = GradientGuard(model, optimizer)
    x = torch.randn(2, 4)
    for _ in range(3):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        assert b"guard" not in file.getvalue()
        for again in (torch.load(file, weights_only=False), copy.deepcopy(model)):
            assert torch.equal(again(x), model(x))
        optimizer.zero_grad()
        guard.backward(model(x).square().mean())
        guard.step((lambda: model(x).square().mean()) if closures else None)


def held_bytes(guard: GradientGuard) -> int:
    snapshots = guard._state._ring._snapshots
    return sum(c.numel() * c.element_size() for s in snapshots for c in s.parameters.copies)


def test_a_frozen_base_is_not_held() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64).requires_grad_(False), nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate({"snapshot": {"every_steps": 2}}))
    for _ in range(8):
        optimizer.zero_grad()
        guard.backward(model(torch.randn(4, 64)).square().mean())
        guard.step()
    assert held_bytes(guard) == 2 * 4 * (64 * 4 + 4)


def test_a_momentum_teacher_inside_the_model_is_rolled_back() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
    model = nn.ModuleDict({"student": student, "teacher": teacher})
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    config = GuardConfig.model_validate({"snapshot": {"every_steps": 3}, "budget": {"consecutive_skips": 1}})
    guard = GradientGuard(model, optimizer, config)
    taught = {0: teacher.weight.clone()}
    for _ in range(2):
        for _ in range(7):
            optimizer.zero_grad()
            x = torch.randn(8, 4)
            guard.backward((student(x) - teacher(x).detach()).square().mean())
            taught[guard.steps + 1] = teacher.weight.clone()
            guard.step()
            for p, q in zip(teacher.parameters(), student.parameters(), strict=True):
                p.data.mul_(0.9).add_(q.data, alpha=0.1)
        optimizer.zero_grad()
        guard.backward(student(torch.randn(8, 4)).square().mean() * math.nan)
        report = guard.step()
        assert report.rolled_back_to is not None
        assert torch.equal(teacher.weight, taught[report.rolled_back_to])
