"""Two and three ranks: all see the same, decide alike and act alike, and nobody hangs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, GuardConfig, GuardHalt, RankDivergence
from tests.guard.loops import differences, guarded_run
from tests.guard.ranks import on_ranks

BAD = {
    "nan loss": {"kind": "nan_loss"},
    "nan batch": {"kind": "poisoned_batch", "factor": math.nan},
    "inf gradient": {"kind": "scaled_gradient", "factor": math.inf, "parameter": "0.weight"},
}
GRID = [3.0, math.inf, -math.inf, math.nan]


def one_bad_step(rank: int, world_size: int, culprit: int, name: str, local_norm: str) -> dict[str, Any]:
    fault = {**BAD[name], "step": 3, "rank": culprit}
    where = {"rank": rank, "world_size": world_size}
    run = guarded_run({"local_norm": local_norm}, faults=[fault], ddp=True, **where).train(3)
    before = run.state()
    report = run.attempt()
    changed = differences(before, run.state())
    run.train(6)
    assert report.incident is not None
    return {
        "action": report.action,
        "changed": changed,
        "culprit": report.incident.ranks[0]["rank"],
        "nonfinite": [row["nonfinite"] for row in report.incident.ranks],
        "after": [r.action for r in run.reports[4:]],
    }


def spike_grid(rank: int, culprit: int, value: float, bad: int) -> list[tuple[Any, ...]]:
    """Losses 1/i, the one at index ``bad`` replaced on one rank, and four more."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    guard = GradientGuard(model, optimizer)
    reports = []
    for i in range(1, bad + 6):
        loss = value if i == bad + 1 and rank == culprit else 1 / i
        optimizer.zero_grad()
        output = model(torch.ones(1, 3)).sum()
        guard.backward(output - output.detach() + loss)
        report = guard.step()
        reports.append((report.action, report.verdict.kind, report.loss, report.step))
    return reports


def stop_request(rank: int, world_size: int) -> list[bool]:
    run = guarded_run(ddp=True, rank=rank, world_size=world_size)
    assert run.guard is not None
    stops = []
    for i in range(4):
        if rank == world_size - 1 and i == 2:
            run.guard.request_stop()
        stops.append(run.attempt().stop)
    return stops


def tampered(rank: int, world_size: int, culprit: int) -> str:
    run = guarded_run(ddp=True, rank=rank, world_size=world_size).train(2)
    assert run.guard is not None
    state = run.guard.state_dict()
    run.guard.load_state_dict({**state, "step": state["step"] + (rank == culprit)})
    with pytest.raises(RankDivergence) as raised:
        run.attempt()
    return str(raised.value)


def forgotten_wrapper(rank: int, world_size: int) -> tuple[str, list[str]]:
    run = guarded_run(rank=rank, world_size=world_size)
    before = run.state()["optimizer"], [p.clone() for p in run.model.parameters()]
    with pytest.raises(RankDivergence) as raised:
        run.attempt()
    after = run.state()["optimizer"], [p.clone() for p in run.model.parameters()]
    return str(raised.value), differences(before, after)


def halt(rank: int, world_size: int) -> dict[str, Any]:
    fault = {"kind": "nan_loss", "step": 7, "times": 1000, "rank": world_size - 1}
    config = {
        "snapshot": {"every_steps": 5, "clean_steps": 1},
        "budget": {"consecutive_skips": 2, "rollbacks": 1},
    }
    run = guarded_run(config, faults=[fault], ddp=True, rank=rank, world_size=world_size).train(5)
    healthy = run.state()
    with pytest.raises(GuardHalt) as raised:
        run.train(20)
    return {
        "changed": differences(healthy, run.state()),
        "incident": raised.value.incident.to_dict(),
        "message": str(raised.value),
        "steps": run.guard.steps if run.guard else None,
    }


def local_norms(rank: int, world_size: int) -> dict[str, Any]:
    """Each rank's gradient before the all-reduce, from a copy of the model that is in no DDP."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    torch.manual_seed(rank)
    inputs = torch.randn(8, 4) * (rank + 1)
    alone = torch.autograd.grad(model(inputs).square().mean(), list(model.parameters()))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    seen: dict[str, Any] = {"truth": math.sqrt(sum(float(g.square().sum()) for g in alone))}
    for name, every, scaling in (
        ("always", "always", None),
        ("scaled", "always", scaler),
        ("third", 3, None),
    ):
        guard = GradientGuard(wrapped, optimizer, GuardConfig(local_norm=every), scaler=scaling)
        reports = []
        for _ in range(8):
            optimizer.zero_grad()
            guard.backward(wrapped(inputs).square().mean())
            reports.append(guard.step().local_norms)
        seen[name] = reports
    return seen


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    where = rank, world_size
    culprits = range(world_size)
    return {
        "bad": {
            (c, name, local): one_bad_step(*where, c, name, local)
            for c in culprits
            for name in BAD
            for local in ("always", "off")
        },
        "grid": {
            (c, str(v), bad): spike_grid(rank, c, v, bad) for c in culprits for v in GRID for bad in (4, 30)
        },
        "stop": stop_request(*where),
        "tampered": [tampered(*where, c) for c in culprits],
        "forgotten": forgotten_wrapper(*where),
        "halt": halt(*where),
        "local": local_norms(*where),
    }


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(request.param, scenarios, tmp_path_factory.mktemp("ranks"))


def test_nan_on_one_rank_skips_all_ranks_exactly(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        for case in seen["bad"].values():
            assert case["action"] == "skipped"
            assert case["changed"] == []
            assert case["after"] == ["applied"] * 3


def test_every_rank_names_the_culprit_first(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        for (culprit, name, local), case in seen["bad"].items():
            if local == "always" or name != "inf gradient":
                assert case["culprit"] == culprit
                assert case["nonfinite"] == [True] + [False] * (len(ranks) - 1)


def test_without_local_norms_nobody_is_accused_of_a_gradient(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        for (_, name, local), case in seen["bad"].items():
            if local == "off" and name == "inf gradient":
                assert not any(case["nonfinite"])


def test_all_ranks_act_alike_on_every_cell_of_the_spike_grid(ranks: list[dict[str, Any]]) -> None:
    for cell, mine in ranks[0]["grid"].items():
        _, value, bad = cell
        actions = [action for action, *_ in mine]
        if bad == 30 or not math.isfinite(
            float(value)
        ):  # after four values a threefold loss may still be normal
            assert actions[bad] in ("skipped", "rolled_back"), cell
        assert actions.count("applied") >= bad + 4, cell
        for other in ranks[1:]:
            assert not differences(mine, other["grid"][cell])


def test_a_stop_asked_for_on_one_rank_reaches_all_in_the_same_step(ranks: list[dict[str, Any]]) -> None:
    assert [seen["stop"] for seen in ranks] == [[False, False, True, True]] * len(ranks)


def test_a_rank_with_another_step_count_is_named_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        for culprit, message in enumerate(seen["tampered"]):
            named = 1 if len(ranks) == 2 else culprit  # of two ranks that differ, none is in the minority
            assert f"of rank {named} differs" in message


def test_gradients_that_were_not_reduced_are_never_applied(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        message, changed = seen["forgotten"]
        assert "DistributedDataParallel" in message
        assert "the norm of 0.weight is" in message
        assert changed == []


def test_a_spent_budget_halts_all_ranks_with_the_last_healthy_weights(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        halted = seen["halt"]
        assert halted["changed"] == []
        assert halted["steps"] == 5
        assert halted["incident"]["action"] == "halted"
        assert halted["incident"]["ranks"][0]["rank"] == len(ranks) - 1
        assert "the budget is spent" in halted["message"]


def test_local_norms_are_those_before_the_all_reduce(ranks: list[dict[str, Any]]) -> None:
    truth = [seen["local"]["truth"] for seen in ranks]
    for seen in ranks:
        for name in ("always", "scaled"):
            assert all(math.isnan(norm) for norm in seen["local"][name][0])
            for row in seen["local"][name][1:]:
                assert row == pytest.approx(truth, rel=1e-4)


def test_local_norms_can_be_taken_every_few_steps(ranks: list[dict[str, Any]]) -> None:
    taken = [not math.isnan(row[0]) for row in ranks[0]["local"]["third"]]
    assert taken == [False, False, False, True, False, False, True, False]
