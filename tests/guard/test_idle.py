"""An armed but idle guard leaves a training bit-identical to the loop without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.guard.loops import MakeOptimizer, adamw, differences, guarded_run, plain_run, sgd

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd momentum": sgd,
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adamw plain": lambda p: torch.optim.AdamW(p, lr=3e-3, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=3e-3, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=3e-3, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_idle_guard_leaves_every_bit_as_the_plain_loop_has_it(name: str) -> None:
    plain = plain_run(OPTIMIZERS[name]).train_plain(120)
    guarded = guarded_run({"snapshot": {"every_steps": 20}}, OPTIMIZERS[name]).train(120)
    assert {r.action for r in guarded.reports} == {"applied"}
    assert not differences(plain.state(), guarded.state())


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_guard_that_may_not_act_leaves_every_bit_too(mode: str) -> None:
    plain = plain_run(adamw).train_plain(120)
    guarded = guarded_run({"mode": mode}, adamw).train(120)
    assert not differences(plain.state(), guarded.state())


def test_a_limit_that_bites_gives_the_weights_of_clip_grad_norm() -> None:
    plain = plain_run().train_plain(60, max_norm=0.1)
    guarded = guarded_run({"clip": {"max_norm": 0.1}}).train(60)
    assert {r.action for r in guarded.reports} <= {"applied", "clipped"}
    assert sum(r.action == "clipped" for r in guarded.reports) > 30
    for ours, reference in zip(guarded.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def test_the_guard_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    run = guarded_run({"snapshot": {"every_steps": 1}})
    torch.set_rng_state(before)
    run.model.eval()
    run.train(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_and_attempts_count_from_one_when_nothing_happens() -> None:
    reports = guarded_run().train(5).reports
    assert [(r.step, r.attempt, r.action) for r in reports] == [(i, i, "applied") for i in range(1, 6)]


def test_two_backward_calls_a_step_equal_the_plain_accumulation() -> None:
    plain = plain_run()
    for _ in range(30):
        plain.optimizer.zero_grad()
        for _ in range(2):
            (plain.loss() / 2).backward()
        nn.utils.clip_grad_norm_(plain.model.parameters(), 1e6)
        plain.optimizer.step()
        plain.scheduler.step()
    guarded = guarded_run()
    assert guarded.guard is not None
    for _ in range(30):
        guarded.optimizer.zero_grad()
        for _ in range(2):
            guarded.guard.backward(guarded.loss(), weight=0.5)
        guarded.guard.step()
    assert not differences(plain.state(), guarded.state())
