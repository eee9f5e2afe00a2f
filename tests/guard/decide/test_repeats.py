"""A healthy batch is computed twice now and then: wrong arithmetic is found, and nothing else is changed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.guard.loops import NEVER, Run, adamw, differences, guarded_run, plain_run
from tests.guard.ranks import on_ranks

EVERY = 3
STEPS = 20
FLIP = {"kind": "bitflip_gradient", "parameter": "*0.weight", "step": 2 * EVERY - 1, "bit": 18}
"""A bit of the mantissa, in the attempt whose batch is computed twice: no signal shows it."""


def trained(
    faults: list[dict[str, Any]],
    *,
    draws: bool = False,
    recompute: Any = EVERY,
    mode: str = "exact",
    steps: int = STEPS,
    make: Any = adamw,
    **where: Any,
) -> Run:
    """``draws``: the loop draws noise for the batch itself, and the closure draws other noise."""
    run = guarded_run({"mode": mode, "recompute": recompute}, make, faults=faults, **where)
    assert run.guard is not None
    assert run.faults is not None
    guard, injected = run.guard, run.faults
    while guard.steps < steps:
        injected.begin(guard.steps)
        run.optimizer.zero_grad()
        inputs, targets = next(run.cursor)
        generator = torch.Generator().manual_seed(guard.attempts)

        def closure() -> Tensor:
            injected.repeat()
            return loss()

        def loss() -> Tensor:
            noise = torch.randn(inputs.shape, generator=generator) if draws else 0.0  # noqa: B023
            return nn.functional.mse_loss(run.model(inputs + noise), targets)  # noqa: B023

        guard.backward(loss())
        run.reports.append(guard.step(closure))
    return run


def incidents(run: Run) -> list[tuple[int, list[int], str]]:
    found = [report.incident for report in run.reports if report.incident is not None]
    return [(incident.attempt, incident.faulty_ranks, incident.reason) for incident in found]


def test_a_run_with_dropout_is_the_plain_loop_to_the_bit() -> None:
    run, plain = trained([]), plain_run(adamw).train_plain(STEPS, NEVER)
    assert not differences(run.state(), plain.state())
    assert not incidents(run)


def test_a_loop_that_does_not_repeat_itself_is_left_alone_and_told_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "guard"):
        run = trained([], draws=True)
    said = [record.message for record in caplog.records if "recompute" in record.message]
    assert said == ["recompute is off: computed again, a batch gives another gradient of 0.weight each time"]
    assert not incidents(run)
    assert not differences(run.state(), trained([], draws=True, recompute="off").state())


def ranks_with_a_flip(rank: int, world_size: int, folder: Path) -> Any:
    where: Any = {"ddp": world_size > 1, "rank": rank, "world_size": world_size}
    clean, faulty = trained([], **where), trained([{**FLIP, "rank": world_size - 1}], **where)
    return incidents(clean), incidents(faulty), differences(clean.state(), faulty.state())


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_flipped_bit_of_a_gradient_is_found_and_leaves_no_trace(tmp_path: Path, world_size: int) -> None:
    alone = world_size == 1
    ranks = (
        [ranks_with_a_flip(0, 1, tmp_path)] if alone else on_ranks(world_size, ranks_with_a_flip, tmp_path)
    )
    for healthy, found, differ in ranks:
        assert not healthy
        assert not differ
        [(attempt, faulty, reason)] = found
        assert attempt == 2 * EVERY
        assert faulty == [world_size - 1]
        assert "another gradient of" in reason
        assert "0.weight" in reason


def test_in_mode_deferred_the_host_decides_such_an_attempt() -> None:
    def fused(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=3e-3, fused=True)

    flip = {**FLIP, "step": 10 * EVERY - 1}  # once there is a history
    config = {"mode": "deferred", "steps": 12 * EVERY, "make": fused}
    clean, faulty = trained([], **config), trained([flip], **config)
    assert not incidents(clean)
    assert not differences(clean.state(), faulty.state())
    [(attempt, faulty_ranks, _)] = incidents(faulty)
    assert (attempt, faulty_ranks) == (10 * EVERY, [0])
