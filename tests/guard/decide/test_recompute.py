"""A batch that looks bad is computed once more: a hardware fault is no bad data and leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guard import FaultConfig, GradientGuard, GuardMetrics, StepReport
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
    incidents = [r.incident for r in faulty.reports if r.incident is not None]
    assert [incident.faulty_ranks for incident in incidents] == [[0]]
    assert "hardware fault" in incidents[0].reason
    assert {r.action for r in faulty.reports} == {"applied"}
    assert metrics.snapshot()["totals"]["hardware_faults"]["0"] == 1


def test_bad_data_is_bad_again_and_skipped_once() -> None:
    run = trained([{"kind": "nan_loss", "step": 30, "times": 2}])
    assert [r.action for r in run.reports].count("skipped") == 1
    incidents = [r.incident for r in run.reports if r.incident is not None]
    assert [incident.faulty_ranks for incident in incidents] == [[]]


def test_a_healthy_run_never_computes_a_batch_twice() -> None:
    run = guarded_run(None, adamw)
    assert run.guard is not None
    for _ in range(40):
        run.optimizer.zero_grad()
        run.guard.backward(run.loss())
        run.guard.step(closure=lambda: pytest.fail("computed again"))


class BadBatch:
    """A closure with dropout; from attempt 30 on, for one batch, the data is bad each time it is computed."""

    def __init__(
        self,
        *,
        noise: torch.Generator | None = None,
        draws: bool = False,
        flip: bool = False,
        factor: float = 300.0,
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.3), nn.Linear(32, 8))
        self.guard = GradientGuard(self.model, torch.optim.AdamW(self.model.parameters(), lr=1e-3))
        self.data = torch.randn(256, 8)
        self.average = copy.deepcopy(self.model)
        self.noise, self.draws, self.flip, self.factor = noise, draws, flip, factor

    def train(self, between: Callable[[BadBatch], object]) -> list[StepReport]:
        return [self.attempt(i, between) for i in range(40)]

    def attempt(self, i: int, between: Callable[[BadBatch], object]) -> StepReport:
        if i % 5 == 0:
            between(self)
        rows = torch.randint(256, (32,))
        bad = self.factor if i == 30 else 1.0
        factors = iter([bad] + [1.0 if self.flip else bad] * 9)

        def closure() -> torch.Tensor:
            inputs = self.data[rows]
            if self.noise is not None or self.draws:
                inputs = inputs + 0.1 * torch.randn(32, 8, generator=self.noise)
            return (self.model(inputs) - next(factors) * self.data[rows]).square().mean()

        self.model.zero_grad()
        self.guard.backward(closure())
        return self.guard.step(closure)


def evaluate(run: BadBatch) -> None:
    run.model.eval()
    with torch.no_grad():
        run.model(run.data)
    run.model.train()


def evaluate_average(run: BadBatch) -> None:
    run.average = copy.deepcopy(run.model)
    run.average(run.data[:64])


def forward_in_training_mode(run: BadBatch) -> None:
    with torch.no_grad():
        run.model(run.data)


BETWEEN = {
    "nothing": lambda _: None,
    "evaluation": evaluate,
    "evaluation with gradients": lambda run: run.model(run.data[:64]),
    "averaged copy": evaluate_average,
    "training mode": forward_in_training_mode,
}


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("noise", ["dropout", "drawn before the forward", "own generator"])
def test_bad_data_is_no_hardware_fault_whatever_runs_between_two_steps(name: str, noise: str) -> None:
    generator = torch.Generator() if noise == "own generator" else None
    run = BadBatch(noise=generator, draws=noise == "drawn before the forward")
    reports = run.train(BETWEEN[name])
    found = [(i, r.incident.reason, r.faulty_ranks) for i, r in enumerate(reports) if r.incident is not None]
    assert [i for i, _, _ in found] == [30]
    assert found[0][2] == []
    assert "hardware" not in found[0][1]


@pytest.mark.parametrize("name", ["nothing", "evaluation", "averaged copy"])
def test_a_hardware_fault_is_found_after_an_evaluation(name: str) -> None:
    report = BadBatch(flip=True).train(BETWEEN[name])[30]
    assert report.faulty_ranks == [0]
    assert report.action == "applied"


def test_a_result_that_cannot_repeat_itself_accuses_nobody() -> None:
    report = BadBatch(flip=True, noise=torch.Generator()).train(evaluate)[30]
    assert report.action == "applied"
    assert report.faulty_ranks == []
    assert report.incident is not None
    assert "other random numbers" in report.incident.reason


def test_a_recomputation_leaves_the_random_numbers_where_the_batch_left_them() -> None:
    bad, plain = BadBatch(draws=True, flip=True), BadBatch(draws=True, factor=1.0)
    positions = []
    for run in (bad, plain):
        torch.manual_seed(1)
        run.train(BETWEEN["nothing"])
        positions.append(torch.get_rng_state())
    assert torch.equal(*positions)


def two_ranks(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    where = {"rank": rank, "world_size": world_size, "ddp": True}
    clean = trained([], 40, **where)
    faulty = guarded_run(None, adamw, **where)
    fault = FaultConfig.model_validate({**FAULTS["scaled gradient"], "step": 25, "rank": 1})
    faulty.faults = FaultInjector([fault], model=faulty.model, optimizer=faulty.optimizer, rank=rank)
    assert faulty.guard is not None
    while faulty.guard.steps < 40:
        attempt(faulty)
    incidents = [r.incident.faulty_ranks for r in faulty.reports if r.incident is not None]
    return {"changed": differences(clean.state(), faulty.state()), "incidents": incidents}


@pytest.mark.slow
def test_the_faulty_rank_is_named_on_all_ranks(tmp_path: Path) -> None:
    for seen in on_ranks(2, two_ranks, tmp_path):
        assert seen == {"changed": [], "incidents": [[1]]}
