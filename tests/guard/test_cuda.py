"""On a GPU: a deferred step never makes the host wait, and ends where the exact one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from guard import GradientGuard, GuardConfig
from guard.act.stores import TensorStore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # Torch warns that set_sync_debug_mode is a prototype, and warnings are errors.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


def train(
    mode: str, steps: int, *, watch_from: int | None = None, bad: int | None = None
) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.Tanh(), nn.Linear(256, 8)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    config: dict[str, Any] = {"mode": mode, "snapshot": {"every_steps": 1000}, "update_norm": "off"}
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate(config))
    batches = [torch.randn(32, 64, device="cuda") for _ in range(steps)]
    bad_batch = torch.full((32, 64), torch.inf, device="cuda")
    torch.cuda.synchronize()
    try:
        for i, x in enumerate(batches):
            if i == watch_from:
                torch.cuda.set_sync_debug_mode("error")
            optimizer.zero_grad()
            guard.backward(model(bad_batch if i == bad else x).square().mean())
            guard.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    guard.flush()
    return [t.detach().clone() for t in model.state_dict().values()]


def test_a_deferred_step_makes_the_host_wait_for_nothing() -> None:
    """torch raises at the first wait; what is left is a model that has trained."""
    assert all(bool(tensor.isfinite().all()) for tensor in train("deferred", 60, watch_from=40))


@pytest.mark.parametrize("bad", [None, 50])
def test_deferred_and_exact_end_alike(bad: int | None) -> None:
    for ours, theirs in zip(train("deferred", 80, bad=bad), train("exact", 80, bad=bad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_copy_in_host_memory_is_of_the_moment_it_was_made() -> None:
    """What is launched after ``wait`` comes after the copy, however long the copy takes."""
    tensors = [torch.randn(4096, 4096, device="cuda") for _ in range(4)]
    store, before = TensorStore("host"), [tensor.clone() for tensor in tensors]
    for _ in range(3):
        store.save(tensors)
        store.wait()
        for tensor in tensors:
            tensor.fill_(torch.nan)
        store.restore(tensors)
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert all(copy.is_pinned() for copy in store._copies)


@pytest.mark.parametrize("mode", ["exact", "deferred"])
def test_a_rollback_from_host_memory_is_one_from_the_device(mode: str) -> None:
    ends = []
    for place in ("device", "host"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.Tanh(), nn.Linear(256, 8)).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        config = {"mode": mode, "snapshot": {"every_steps": 10, "place": place}}
        guard = GradientGuard(model, optimizer, GuardConfig.model_validate(config))
        actions = set()
        for step in range(80):
            x = torch.randn(32, 64, device="cuda") * (1e4 if step in (50, 51, 52) else 1.0)
            optimizer.zero_grad()
            guard.backward(model(x).square().mean() + 1e-3 * x.square().mean())
            actions.add(guard.step().action)
        guard.flush()
        assert "rolled_back" in actions
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_mode_auto_is_deferred_for_a_fused_optimizer_and_exact_for_another() -> None:
    for fused, mode in ((True, "deferred"), (False, "exact")):
        model = nn.Linear(4, 4).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        assert GradientGuard(model, optimizer, GuardConfig(mode="auto")).config.mode == mode
