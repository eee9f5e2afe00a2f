"""Under each layout of the weights the guard measures, clips, skips and rolls back as in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard import GradientGuard, GuardConfig, GuardError, RankDivergence
from guard.observe.shards import local
from tests.guard.layouts import LAYOUTS, Layout, Net, Uneven, batch, made, sgd
from tests.guard.loops import differences
from tests.guard.ranks import on_ranks

pytestmark = pytest.mark.slow
STEPS = 6
SHARDED: dict[str, Callable[[], nn.Module]] = {"FSDP2": lambda: made(Uneven), "HSDP": lambda: made(Net)}
LIMIT = 0.1


def guarded(layout: Layout, **config: Any) -> GradientGuard:
    settings = GuardConfig.model_validate({"snapshot": {"every_steps": 4}, **config})
    return GradientGuard(layout.model, layout.optimizer, settings, **layout.arguments)


def clipped(make: Any) -> list[tuple[str, float, float]]:
    """Each step's action, norm and factor under a limit that is always exceeded."""
    layout = make()
    guard = guarded(layout, clip={"max_norm": LIMIT})
    seen = []
    for step in range(STEPS):
        layout.optimizer.zero_grad()
        guard.backward(layout.loss(*batch(step)))
        report = guard.step()
        seen.append((report.action, report.grad_norm, report.clip_coef))
    return seen


def held(layout: Layout) -> dict[str, Any]:
    """What this rank holds of weights and moments."""
    optimizer: Any = layout.optimizer
    states = getattr(optimizer, "optim", optimizer).state
    return {
        "weights": [local(p).detach().clone() for p in layout.model.parameters()],
        "moments": [
            local(value).clone()
            for p in layout.model.parameters()
            for value in states.get(p, {}).values()
            if isinstance(value, Tensor)
        ],
    }


def faults(make: Any, rank: int) -> dict[str, Any]:
    """A NaN on rank 1 alone at step 6, then three bad batches in a row."""
    layout = make()
    guard = guarded(layout, clip={"kind": "off"}, recovery={"cooldown_steps": 0})
    reports, snapshot, skip = [], None, None
    for attempt in range(12):
        bad = attempt in (6, 8, 9, 10)
        before = held(layout)
        layout.optimizer.zero_grad()
        loss = layout.loss(*batch(attempt))
        on_loss = bad and (attempt > 6 or (rank == 1 and not layout.poisons_shard))
        guard.backward(loss * torch.nan if on_loss else loss)
        if attempt == 6 and layout.poisons_shard and rank == 1:
            poison(layout.model)
        reports.append(guard.step())
        if guard.steps == 4 and reports[-1].applied:
            snapshot = held(layout)
        if attempt == 6:
            skip = differences(before, held(layout))
        if reports[-1].action == "rolled_back":
            back = differences(snapshot, held(layout))
    return {
        "reports": [(r.step, r.action, r.verdict.kind, r.grad_norm) for r in reports],
        "skip": skip,
        "back": back,
    }


def poison(model: nn.Module) -> None:
    """One element of the gradient of which this rank has a part of its own."""
    named = dict(model.named_parameters())
    gradient = named.get("experts", named["blocks.0.up.weight"]).grad
    local(gradient).view(-1)[0] = torch.nan  # type: ignore[arg-type]


def local_norms(make: Any, whole: Any, rank: int) -> dict[str, Any]:
    """What each rank measured in two attempts, what this rank's batch gives in one process, and whom an
    incident names for a loss that is a thousand times too high on rank 2."""
    layout, alone = make(), whole()
    guard = guarded(layout, clip={"kind": "off"}, update_norm="off")
    seen, own = [], []
    for attempt in range(30):
        layout.optimizer.zero_grad()
        bad = attempt == 29 and rank == 2
        inputs, targets = batch(attempt % 3)
        if attempt == 0:
            inputs_own, targets_own = inputs.chunk(4)[rank], targets.chunk(4)[rank]
            (alone(inputs_own) - targets_own).square().mean().backward()
            own = [p.grad.norm() for p in alone.parameters() if p.grad is not None]
        guard.backward(layout.loss(inputs, targets) * (1e3 if bad else 1.0))
        report = guard.step()
        seen.append(report)
    incident = seen[-1].incident
    return {
        "measured": seen[1].local_norms,  # a report has those of the attempt before
        "own": torch.stack(own).norm().item(),
        "named": incident.ranks[0].rank if incident is not None else None,
    }


def stages(rank: int) -> dict[str, Any]:
    """A pipeline: each rank has another part of the model, under names of its own."""
    model = nn.Module()
    setattr(model, f"stage{rank}", nn.Linear(4, 4 + rank))
    with pytest.raises(GuardError) as raised:
        GradientGuard(model, sgd(model), GuardConfig())
    return {"error": type(raised.value).__name__, "message": str(raised.value)}


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    found = {name: (clipped(make), faults(make, rank)) for name, (make, _) in LAYOUTS.items()}
    norms = {name: local_norms(LAYOUTS[name][0], whole, rank) for name, whole in SHARDED.items()}
    return {**found, "norms": norms, "stages": stages(rank)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(4, scenarios, tmp_path_factory.mktemp("layouts"))


def reference(kind: Any) -> list[tuple[float, float]]:
    """Norm and factor of each step of torch's own loop, in one process."""
    model = made(kind)
    optimizer = sgd(model)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        tokens, targets = batch(step)
        (model(tokens) - targets).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), LIMIT).item()
        seen.append((norm, LIMIT / (norm + 1e-6)))
        optimizer.step()
    return seen


@pytest.mark.parametrize("name", LAYOUTS)
def test_norms_and_factors_are_those_of_torch_in_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    expected = reference(LAYOUTS[name][1])
    for seen in ranks:
        actions, norms, factors = zip(*seen[name][0], strict=True)
        assert set(actions) == {"clipped"}
        assert norms == pytest.approx([norm for norm, _ in expected], rel=1e-6)
        assert factors == pytest.approx([factor for _, factor in expected], rel=2e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_nan_on_one_rank_skips_all_of_them_exactly(ranks: list[dict[str, Any]], name: str) -> None:
    for seen in ranks:
        reports = seen[name][1]["reports"]
        assert reports[6][1:3] == ("skipped", "nonfinite")
        assert reports[7][1] == "applied"
        assert seen[name][1]["skip"] == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rollback_restores_what_each_rank_holds_to_the_bit(ranks: list[dict[str, Any]], name: str) -> None:
    for seen in ranks:
        assert seen[name][1]["reports"][10][:2] == (4, "rolled_back")
        assert seen[name][1]["back"] == []
        assert differences(ranks[0][name][1]["reports"], seen[name][1]["reports"]) == []


@pytest.mark.parametrize("name", SHARDED)
def test_a_ranks_own_gradient_norm_is_that_of_its_part_of_the_batch(
    ranks: list[dict[str, Any]], name: str
) -> None:
    own = [found["norms"][name]["own"] for found in ranks]
    for found in ranks:
        assert found["norms"][name]["measured"] == pytest.approx(own, rel=1e-5)
        assert found["norms"][name]["named"] == 2


def test_stages_of_a_pipeline_are_refused_when_the_guard_is_made(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        assert seen["stages"]["error"] == RankDivergence.__name__
        assert "pipeline" in seen["stages"]["message"]
