"""What the optimizer steps is what is measured, clipped, skipped and rolled back, at every step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard import GradientGuard, GuardConfig, GuardError, StepReport
from guard.observe.watched import Watched


def two_layers() -> tuple[nn.Linear, nn.Linear, nn.Sequential]:
    torch.manual_seed(0)
    backbone, head = nn.Linear(4, 4), nn.Linear(4, 1)
    return backbone, head, nn.Sequential(backbone, head)


def attempt(
    guard: GradientGuard, model: nn.Module, optimizer: torch.optim.Optimizer, factor: float = 1.0
) -> StepReport:
    optimizer.zero_grad()
    guard.backward(model(torch.randn(8, 4)).square().mean() * factor)
    return guard.step()


def finite(tensors: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def test_a_group_added_later_is_clipped_with_the_rest_as_torch_clips() -> None:
    backbone, head, model = two_layers()
    backbone.requires_grad_(False)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    guard = GradientGuard(model, optimizer, GuardConfig(clip={"max_norm": 0.01}))
    backbone.requires_grad_(True)
    optimizer.add_param_group({"params": backbone.parameters()})
    before = [p.detach().clone() for p in model.parameters()]
    guard.backward(100 * model(torch.randn(8, 4)).square().mean())
    whole = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    report = guard.step()
    assert report.grad_norm == pytest.approx(float(whole), rel=1e-5)
    moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    assert float(torch.nn.utils.get_total_norm(moved)) == pytest.approx(0.01, rel=1e-3)
    assert list(guard.layer_norms) == [name for name, _ in model.named_parameters()]


def unfreeze(backbone: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backbone.requires_grad_(True)
    optimizer.add_param_group({"params": backbone.parameters()})


def thaw(backbone: nn.Module, _: torch.optim.Optimizer) -> None:
    backbone.requires_grad_(True)


@pytest.mark.parametrize("kind", ["auto", "adagc", "agc", "group", "zclip"])
@pytest.mark.parametrize("how", [unfreeze, thaw], ids=["group added", "in the optimizer from the start"])
def test_a_nan_in_a_layer_unfrozen_later_is_skipped(how: Any, kind: str) -> None:
    backbone, head, model = two_layers()
    backbone.requires_grad_(False)
    trained = head.parameters() if how is unfreeze else model.parameters()
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    clip = {"kind": kind, **({"max_norm": 1.0} if kind == "group" else {})}
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate({"clip": clip}))
    for _ in range(5):
        attempt(guard, model, optimizer)
    how(backbone, optimizer)
    first = backbone.weight.detach().clone()
    assert attempt(guard, model, optimizer).applied
    assert not torch.equal(first, backbone.weight)
    handle = backbone.weight.register_hook(lambda gradient: gradient * math.nan)
    report = attempt(guard, model, optimizer)
    handle.remove()
    assert report.action in ("skipped", "rolled_back")
    assert finite(model.parameters())
    assert report.incident is not None
    assert report.incident.layers[0].name == "0.weight"


def test_a_parameter_outside_the_model_is_watched_under_the_name_of_its_group() -> None:
    torch.manual_seed(0)
    model, log_sigma = nn.Linear(4, 1), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([*model.parameters(), log_sigma], lr=1e-2)
    guard = GradientGuard(model, optimizer)
    log_sigma.register_hook(lambda gradient: gradient * math.nan)
    guard.backward(model(torch.randn(8, 4)).square().mean() * torch.exp(-log_sigma[0]) + log_sigma[0])
    assert guard.step().action == "skipped"
    assert finite([log_sigma])
    assert list(guard.layer_norms) == ["weight", "bias", "param_groups.0.2"]


def test_a_replaced_head_is_watched_and_the_old_one_no_longer() -> None:
    backbone, _, model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = GradientGuard(model, optimizer)
    attempt(guard, model, optimizer)
    model[1] = nn.Linear(4, 3)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    attempt(guard, model, optimizer)
    assert list(guard.layer_norms) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert guard.layer_norms["1.weight"] > 0
    handle = model[1].weight.register_hook(lambda gradient: gradient * math.nan)
    assert attempt(guard, model, optimizer).action == "skipped"
    handle.remove()
    assert finite([*backbone.parameters(), *model.parameters()])


def test_a_layer_frozen_later_does_not_stop_a_micro_batch_from_being_dropped() -> None:
    backbone, _, model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = GradientGuard(model, optimizer)
    held = backbone.weight
    for step in range(6):
        if step == 3:
            backbone.requires_grad_(False)
            held = backbone.weight.detach().clone()
        optimizer.zero_grad()
        for k in range(2):
            loss = model(torch.randn(8, 4)).square().mean()
            guard.backward(loss * math.nan if (step, k) == (4, 0) else loss, weight=0.5)
        report = guard.step()
        assert report.applied
        assert report.dropped_micro_batches == (step == 4)
    assert torch.equal(held, backbone.weight)
    assert finite(model.parameters())


def test_what_another_optimizer_trains_is_left_alone() -> None:
    """Its gradient may be stale, or another guard's to clip."""
    backbone, head, model = two_layers()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
    guard = GradientGuard(model, optimizer)
    guard.backward(model(torch.randn(8, 4)).square().mean() * math.nan)
    assert guard.step().action == "skipped"
    assert backbone.weight.grad is not None
    assert bool(backbone.weight.grad.isnan().any())
    assert list(guard.layer_norms) == ["1.weight", "1.bias"]


def test_a_model_and_an_optimizer_without_a_common_parameter_are_refused() -> None:
    with pytest.raises(GuardError, match="the optimizer has no parameter of the model"):
        GradientGuard(nn.Linear(2, 2), torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


def test_gradients_in_memory_of_the_users_own_survive_a_skip() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    guard = GradientGuard(model, optimizer)
    static = [torch.zeros_like(p) for p in model.parameters()]
    for parameter, memory in zip(model.parameters(), static, strict=True):
        parameter.grad = memory
    actions: list[str] = []
    for step in range(8):
        before = model.weight.detach().clone()
        loss = (model(torch.randn(16, 8)) - 1).square().mean() * (math.nan if step == 4 else 1.0)
        for memory, gradient in zip(static, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            memory.copy_(gradient)
        guard.observe_loss(loss.detach())
        actions.append(guard.step().action)
        assert torch.equal(before, model.weight) == (step == 4)
    assert actions[4] == "skipped"


def test_a_first_step_without_any_gradient_is_refused_and_a_later_one_is_warned_of() -> None:
    _, _, model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = GradientGuard(model, optimizer)
    guard.backward(model(torch.randn(8, 4)).square().mean())
    optimizer.zero_grad()
    with pytest.raises(GuardError, match="no parameter of the optimizer has a gradient: zero_grad between"):
        guard.step()
    attempt(guard, model, optimizer)
    guard.observe_loss(torch.ones(()))
    optimizer.zero_grad()
    with pytest.warns(UserWarning, match="no gradient at all"):
        guard.step()


def test_only_a_change_is_a_change() -> None:
    _, head, model = two_layers()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
    watched = Watched(model, optimizer)
    names: dict[str, Tensor] = watched.named()
    assert list(names) == ["1.weight", "1.bias"]
    assert not watched.changed
    optimizer.add_param_group({"params": [model[0].weight]})
    assert watched.changed
    assert list(watched.named()) == ["0.weight", "1.weight", "1.bias"]
    assert not watched.changed
