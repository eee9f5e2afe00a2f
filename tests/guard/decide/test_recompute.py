"""A batch that looks bad is computed once more: hardware faults are told from bad data and leave no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from guard import FaultConfig, GuardMetrics, StepReport
from guard.faults.injector import FaultInjector
from tests.guard.loops import Run, adamw, differences, guarded_run
from tests.guard.ranks import on_ranks

FAULTS: dict[str, dict[str, Any]] = {
    "flipped gradient": {"kind": "bitflip_gradient", "parameter": "0.weight"},
    "scaled gradient": {"kind": "scaled_gradient", "factor": 1e5},
    "nan loss": {"kind": "nan_loss"},
    "damaged statistics": {"kind": "poisoned_buffers", "parameter": "*.running_var", "factor": 1e6},
}


def attempt(run: Run) -> StepReport:
    """One step with a closure; the fault of the first computation does not come back in the second."""
    assert run.guard is not None
    assert run.faults is not None
    run.faults.begin(run.guard.steps)
    run.optimizer.zero_grad()
    batch = next(run.cursor)

    def loss() -> torch.Tensor:
        assert run.faults is not None
        inputs, targets = run.faults.batch(batch)
        return run.faults.loss(torch.nn.functional.mse_loss(run.model(inputs), targets))

    def closure() -> torch.Tensor:
        assert run.guard is not None
        assert run.faults is not None
        run.faults.begin(run.guard.steps)
        return loss()

    run.guard.backward(loss())
    run.reports.append(run.guard.step(closure))
    return run.reports[-1]


def trained(faults: list[dict[str, Any]], steps: int = 60, **options: Any) -> Run:
    run = guarded_run(None, adamw, faults=faults, **options)
    assert run.guard is not None
    while run.guard.steps < steps:
        attempt(run)
    return run


def states(run: Run) -> dict[str, Any]:
    assert run.guard is not None
    return {**run.state(), "judge": run.guard.state_dict()["judge"]}


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_hardware_fault_the_run_is_the_clean_one_to_the_bit(name: str) -> None:
    metrics = GuardMetrics(job="test")
    clean, faulty = trained([]), trained([{**FAULTS[name], "step": 30}], metrics=metrics)
    assert not differences(states(clean), states(faulty))
    told = [r.incident for r in faulty.reports if r.incident is not None]
    assert [incident.faulty_ranks for incident in told] == [[0]]
    assert "hardware fault" in told[0].reason
    assert {r.action for r in faulty.reports} == {"applied"}
    assert metrics.snapshot()["totals"]["hardware_faults"]["0"] == 1


def test_bad_data_is_bad_again_and_skipped_once() -> None:
    run = trained([{"kind": "nan_loss", "step": 30, "times": 2}])
    assert [r.action for r in run.reports].count("skipped") == 1
    told = [r.incident for r in run.reports if r.incident is not None]
    assert [incident.faulty_ranks for incident in told] == [[]]


def test_a_healthy_run_never_computes_a_batch_twice() -> None:
    run = guarded_run(None, adamw)
    assert run.guard is not None
    for _ in range(40):
        run.optimizer.zero_grad()
        run.guard.backward(run.loss())
        run.guard.step(closure=lambda: pytest.fail("computed again"))


def two_ranks(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    where = {"rank": rank, "world_size": world_size, "ddp": True}
    clean = trained([], 40, **where)
    faulty = guarded_run(None, adamw, **where)
    fault = FaultConfig.model_validate({**FAULTS["scaled gradient"], "step": 25, "rank": 1})
    faulty.faults = FaultInjector([fault], model=faulty.model, optimizer=faulty.optimizer, rank=rank)
    assert faulty.guard is not None
    while faulty.guard.steps < 40:
        attempt(faulty)
    told = [r.incident.faulty_ranks for r in faulty.reports if r.incident is not None]
    return {"changed": differences(clean.state(), faulty.state()), "told": told}


@pytest.mark.slow
def test_the_faulty_rank_is_named_on_all_ranks(tmp_path: Path) -> None:
    for seen in on_ranks(2, two_ranks, tmp_path):
        assert seen == {"changed": [], "told": [[1]]}
