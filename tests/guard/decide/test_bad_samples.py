"""The bad samples of a batch are found at an incident, nothing else changes, and they can be excluded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, GuardConfig, GuardError, Incident, StepReport
from guard.act import rng
from guard.decide.bad_samples import ranked
from guard.records import Verdict
from tests.guard.loops import network
from tests.guard.ranks import on_ranks

SAMPLES, BATCH, BAD_AT = 256, 32, 24
BAD = 5
"""The place of the bad sample in its batch."""
Poison = Callable[[Tensor, Tensor, int], None]


def nan_pixel(x: Tensor, _: Tensor, place: int) -> None:
    x[place, 3] = math.nan


def far_target(_: Tensor, y: Tensor, place: int) -> None:
    y[place] = 300.0


class Loop:
    """Regression with BatchNorm and dropout; one batch has a bad sample."""

    def __init__(
        self,
        poison: Poison = far_target,
        *,
        micro_batches: int = 1,
        rank: int = 0,
        ranks: int = 1,
        missing: bool = False,
        plain: bool = False,
        also_bad: int | None = None,
        **config: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(SAMPLES, 8, generator=generator)
        self.y = torch.tanh(self.x @ torch.randn(8, 4, generator=generator))
        self.bare = network()
        self.model = DistributedDataParallel(self.bare) if ranks > 1 else self.bare
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.guard = GradientGuard(self.model, self.optimizer, GuardConfig.model_validate(config))
        self.poison, self.parts, self.rank, self.ranks = poison, micro_batches, rank, ranks
        self.missing, self.plain, self.also_bad = missing, plain, also_bad
        self.bad = -1
        torch.manual_seed(3 + rank)

    def loss(self, ids: list[int]) -> Tensor:
        x, y = self.x[ids].clone(), self.y[ids].clone()
        if self.bad in ids:
            self.poison(x, y, ids.index(self.bad))
        if self.bad >= 0 and self.also_bad in ids:
            y[ids.index(self.also_bad)] = 300.0
        return functional.mse_loss(self.model(x), y)

    def backward(self, ids: list[int]) -> None:
        for part in np.array_split(ids, min(self.parts, len(ids))):
            self.guard.backward(self.loss(part.tolist()), weight=len(part) / len(ids))

    def attempt(self, number: int) -> StepReport:
        batch = [(number * BATCH + i) % SAMPLES for i in range(BATCH)]
        self.bad = batch[BAD] if number == BAD_AT else -1
        share = BATCH // self.ranks
        own = batch[self.rank * share : (self.rank + 1) * share]
        if self.missing and self.bad in own:
            own.remove(self.bad)
            self.bad = -1

        def closure(ids: list[int] = own) -> Tensor | None:
            if self.parts == 1:
                return self.loss(ids)
            return self.backward(ids)

        self.optimizer.zero_grad()
        self.backward(own)
        return self.guard.step(closure, samples=None if self.plain else own)

    def run(self, steps: int = BAD_AT + 6) -> Incident | None:
        reports = [self.attempt(number) for number in range(steps)]
        return next((report.incident for report in reports if report.incident), None)

    def state(self) -> list[Tensor]:
        moments = [v for s in self.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        return [t.detach().clone() for t in (*self.bare.state_dict().values(), *moments)]


def finished(loop: Loop) -> tuple[Incident, list[Tensor], dict[str, Any]]:
    """Its first incident, its state at the end, and the random numbers that follow."""
    incident = loop.run()
    assert incident is not None
    return incident, loop.state(), rng.capture()


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("poison", [nan_pixel, far_target])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_bad_sample_is_ranked_first(poison: Poison, micro_batches: int) -> None:
    incident = Loop(poison, micro_batches=micro_batches).run()
    assert incident is not None
    assert [s.sample for s in incident.bad_samples] == [BAD]


@pytest.mark.parametrize("mode", ["exact", "shadow"])
@pytest.mark.parametrize("poison", [nan_pixel, far_target])
def test_the_search_leaves_no_trace(poison: Poison, mode: str) -> None:
    incident, state, generators = finished(Loop(poison, mode=mode))
    other, plain, others = finished(Loop(poison, mode=mode, plain=True))
    assert incident.bad_samples
    assert not other.bad_samples
    assert same(state, plain)
    assert rng.equal(generators, others)


@pytest.mark.parametrize("poison", [nan_pixel, far_target])
def test_an_excluded_sample_is_as_if_the_batch_never_had_it(poison: Poison) -> None:
    excluding = Loop(poison, exclude_samples=True)
    incident, state, generators = finished(excluding)
    without = Loop(poison, missing=True)
    assert without.run() is None
    assert (incident.action, incident.excluded_samples) == ("applied", [BAD])
    assert (excluding.guard.totals.excluded_samples, excluding.guard.totals.skips) == (1, 0)
    assert same(state, without.state())
    assert rng.equal(generators, rng.capture())


def test_where_the_others_are_no_better_the_batch_is_handled_as_without_exclusion() -> None:
    def two(_: Tensor, y: Tensor, place: int) -> None:
        y[place] = 400.0

    incident, state, _ = finished(Loop(two, also_bad=BAD + 1, exclude_samples=True))
    other, plain, _ = finished(Loop(two, also_bad=BAD + 1, plain=True))
    assert incident.bad_samples[0].sample == BAD
    assert incident.excluded_samples == []
    assert incident.action == other.action
    assert same(state, plain)


def test_a_healthy_run_computes_nothing_again() -> None:
    loop, forwards = Loop(), []
    loop.model.register_forward_hook(lambda *_: forwards.append(1))
    for number in range(20):
        loop.attempt(number)
    assert len(forwards) == 20


def test_of_many_samples_few_are_computed_alone() -> None:
    sizes: list[int] = []
    loop = Loop()
    ids = list(range(SAMPLES))

    def closure(chosen: list[int] = ids) -> Tensor:
        sizes.append(len(chosen))
        return loop.loss(chosen)

    for number in range(30):
        loop.bad = 77 if number == 29 else -1
        loop.optimizer.zero_grad()
        loop.guard.backward(loop.loss(ids))
        report = loop.guard.step(closure, samples=torch.tensor(ids))
    assert report.incident is not None
    assert report.incident.bad_samples[0].sample == 77
    assert sizes.count(1) == 64
    assert len(sizes) < 64 + 30


def test_weights_that_are_broken_are_no_samples_fault() -> None:
    loop = Loop()
    for number in range(20):
        loop.attempt(number)
    with torch.no_grad():
        next(loop.model.parameters()).fill_(math.nan)
    report = loop.attempt(20)
    assert report.incident is not None
    assert report.incident.bad_samples == []


def test_a_closure_that_fails_costs_the_ranking_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    whole = loop.loss

    def brittle(ids: list[int]) -> Tensor:
        if len(ids) < BATCH:
            raise ValueError("batches of 32 only")
        return whole(ids)

    loop.loss = brittle  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "guard"):
        incident = loop.run()
    assert incident is not None
    assert incident.bad_samples == []
    assert "batches of 32 only" in caplog.text


def test_samples_need_a_closure_that_takes_them() -> None:
    loop = Loop()
    loop.backward([1, 2, 3])
    with pytest.raises(GuardError, match="without a closure"):
        loop.guard.step(samples=[1, 2, 3])
    other = Loop()
    other.backward([1, 2, 3])
    with pytest.raises(GuardError, match="takes no argument"):
        other.guard.step(lambda: None, samples=[1, 2, 3])


def test_samples_of_all_ranks_are_ranked_by_what_they_explain() -> None:
    def row(samples: int, whole: float, *entries: list[float]) -> list[float]:
        head = [float(samples), float(samples), sum(e[4] for e in entries), whole]
        filled = [*head, *(value for entry in entries for value in entry)]
        return filled + [math.nan] * (44 - len(filled))

    spike = Verdict("spike", "loss", 9.0, 1.0)
    rows = np.array(
        [
            row(32, 1.1, [4, 3.0, math.nan, 0.05, 0]),
            row(32, 3.0, [9, 70.0, math.nan, 2.0, 0]),
            [math.nan] * 44,
        ]
    )
    assert [(s.sample, s.rank) for s in ranked(rows, spike)] == [(9, 1)]
    bad = np.array([row(2, math.nan, [4, math.nan, math.nan, 0, 1], [5, math.nan, math.nan, 0, 1]), rows[0]])
    assert ranked(bad, spike)  # 2 of 34
    assert ranked(bad[:1], spike) == []  # all of them: the weights


def _two_ranks(rank: int, world_size: int, _: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for poison in (nan_pixel, far_target):
        excluding = Loop(poison, rank=rank, ranks=world_size, exclude_samples=True)
        incident, state, _ = finished(excluding)
        without = Loop(poison, rank=rank, ranks=world_size, missing=True)
        assert without.run() is None
        found[poison.__name__] = (
            [(s.sample, s.rank) for s in incident.bad_samples],
            incident.excluded_samples,
            same(state, without.state()),
        )
    return found


def test_two_ranks_agree_on_the_sample_and_train_without_it(tmp_path: Path) -> None:
    one, other = on_ranks(2, _two_ranks, tmp_path)
    assert one == other == dict.fromkeys(("nan_pixel", "far_target"), ([(BAD, 0)], [BAD], True))
