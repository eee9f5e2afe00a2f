"""Where FSDP2 divides the weights, what one rank drops adds nothing, and the mean is that of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from guard import GradientGuard, GuardConfig
from tests.guard.layouts import Net, Uneven, batch, ddp, experts_plain, fsdp2, fsdp2_tp, hsdp, made, sgd
from tests.guard.ranks import on_ranks

pytestmark = pytest.mark.slow
MICRO_BATCHES, STEPS, BAD_STEP = 3, 4, 2
STEADY, BAD_STEPS = 70, 5
LAYOUTS: dict[str, tuple[Callable[[], Any], Callable[[], nn.Module]]] = {
    "FSDP2": (fsdp2, Uneven),
    "HSDP": (hsdp, Net),
    "FSDP2 x TP": (fsdp2_tp, Net),
}
GROUPS = {"FSDP2 x TP": 2}
"""Into how many parts the batch is divided; over four ranks, four unless said otherwise."""


def whole(model: nn.Module) -> list[Tensor]:
    found = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [weights.detach().clone() for weights in found]


def accumulated(name: str, rank: int, *, synced: bool) -> dict[str, Any]:
    """Three micro-batches a step; of step 2 the middle one is NaN in the second part of the batch."""
    layout = LAYOUTS[name][0]()
    guard = GradientGuard(layout.model, layout.optimizer, GuardConfig(clip={"kind": "off"}))
    parts, reports = GROUPS.get(name, 4), []
    for step in range(STEPS):
        layout.optimizer.zero_grad()
        for micro in range(MICRO_BATCHES):
            bad = step == BAD_STEP and micro == 1 and rank * parts // 4 == 1
            layout.model.set_requires_gradient_sync(synced or micro == MICRO_BATCHES - 1)
            loss = layout.loss(*batch(step * MICRO_BATCHES + micro))
            guard.backward(loss * torch.nan if bad else loss, weight=1 / MICRO_BATCHES)
        reports.append(guard.step())
    return {"actions": [r.action for r in reports], "weights": whole(layout.model)}


def in_one_process(name: str) -> list[Tensor]:
    """The mean over the parts of the micro-batches that are finite."""
    model, parts = made(LAYOUTS[name][1]), GROUPS.get(name, 4)
    optimizer = sgd(model)
    for step in range(STEPS):
        used = [(micro, part) for micro in range(MICRO_BATCHES) for part in range(parts)]
        if step == BAD_STEP:
            used.remove((1, 1))
        optimizer.zero_grad()
        for micro, part in used:
            inputs, targets = (t.chunk(parts)[part] for t in batch(step * MICRO_BATCHES + micro))
            ((model(inputs) - targets).square().mean() / len(used)).backward()
        optimizer.step()
    return whole(model)


def excluded(layout: Any, rank: int) -> dict[str, Any]:
    """The data of rank 1 stays bad from step 70 on, and the guard gets a closure."""
    config = GuardConfig(rank_exclusion={"after": 2})
    guard = GradientGuard(layout.model, layout.optimizer, config, **layout.arguments)
    ranks = []
    for step in range(STEADY + BAD_STEPS):
        scale = torch.nan if rank == 1 and step >= STEADY else 1.0
        closure = lambda step=step, scale=scale: layout.loss(*batch(step)) * scale  # noqa: E731
        layout.optimizer.zero_grad()
        guard.backward(closure())
        ranks.append(guard.step(closure).excluded_ranks)
    return {"excluded": ranks[STEADY:], "weights": whole(layout.model)}


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in LAYOUTS:
        found[name] = [accumulated(name, rank, synced=synced) for synced in (True, False)]
    return found | {"without": [excluded(make(), rank) for make in (ddp, hsdp, experts_plain)]}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(4, scenarios, tmp_path_factory.mktemp("dropping"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_micro_batch_that_is_not_finite_on_one_rank_is_dropped(
    ranks: list[dict[str, Any]], name: str
) -> None:
    expected = in_one_process(name)
    for seen in ranks:
        for found in seen[name]:  # gradients reduced after each micro-batch, and after the last one
            assert found["actions"] == ["applied"] * STEPS
            torch.testing.assert_close(found["weights"], expected, rtol=1e-5, atol=1e-6)


def test_a_rank_whose_data_stays_bad_is_excluded_as_under_ddp(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        replicated, sharded, _ = seen["without"]
        assert sharded["excluded"] == replicated["excluded"] == [[], *[[1]] * (BAD_STEPS - 1)]
        torch.testing.assert_close(sharded["weights"], replicated["weights"], rtol=1e-5, atol=1e-6)


def test_no_rank_is_excluded_where_its_tokens_go_to_others(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        assert seen["without"][2]["excluded"] == [[]] * BAD_STEPS
        assert all(weights.isfinite().all() for weights in seen["without"][2]["weights"])
