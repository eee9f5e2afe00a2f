"""The bad samples of a batch are found at an incident, nothing else changes, and they can be excluded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, GuardError, Incident, StepReport
from guard.act import rng
from tests.guard.loops import network
from tests.guard.ranks import on_ranks

SAMPLES, BATCH, BAD_AT = 256, 32, 24
BAD = 5
"""The place of the bad sample in its batch."""
Poison = Callable[[Tensor, Tensor, int], None]
Criterion = Callable[[Tensor, Tensor], Tensor]


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
        also_bad: dict[int, float] | None = None,
        place: int = BAD,
        bad_at: Sequence[int] = (BAD_AT,),
        scaled: bool = False,
        unbound: bool = False,
        criterion: Criterion = functional.mse_loss,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        **config: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(SAMPLES, 8, generator=generator)
        self.y = torch.tanh(self.x @ torch.randn(8, 4, generator=generator))
        self.criterion = criterion
        self.bare = network() if wrap is None else wrap(network())
        self.model = DistributedDataParallel(self.bare) if ranks > 1 else self.bare
        fused = config.get("mode") == "deferred"
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
        self.guard = GradientGuard(self.model, self.optimizer, config, scaler=scaler)
        self.poison, self.parts, self.rank, self.ranks = poison, micro_batches, rank, ranks
        self.unbound = unbound
        self.missing, self.plain, self.also_bad = missing, plain, also_bad or {}
        self.bad, self.place, self.bad_at = -1, place, bad_at
        torch.manual_seed(3 + rank)

    def loss(self, ids: list[int]) -> Tensor:
        x, y = self.x[ids].clone(), self.y[ids].clone()
        if self.bad in ids:
            self.poison(x, y, ids.index(self.bad))
        for other in self.also_bad if self.bad >= 0 else ():
            if other in ids:
                y[ids.index(other)] = self.also_bad[other]
        return self.criterion(self.model(x), y)

    def backward(self, ids: list[int]) -> None:
        for part in np.array_split(ids, min(self.parts, len(ids))):
            self.guard.backward(self.loss(part.tolist()), weight=len(part) / len(ids))

    def attempt(self, number: int) -> StepReport:
        batch = [(number * BATCH + i) % SAMPLES for i in range(BATCH)]
        self.bad = batch[self.place] if number in self.bad_at else -1
        share = BATCH // self.ranks
        own = batch[self.rank * share : (self.rank + 1) * share]
        if self.missing and self.bad in own:
            own.remove(self.bad)
            self.bad = -1

        def closure(ids: list[int] = own, bad: int = self.bad) -> Tensor | None:
            self.bad = self.bad if self.unbound else bad
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


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("poison", [nan_pixel, far_target])
def test_a_deferred_guard_finds_it_one_step_later_without_a_trace(poison: Poison, micro_batches: int) -> None:
    deferred = Loop(poison, micro_batches=micro_batches, mode="deferred")
    incident, state, generators = finished(deferred)
    _, plain, others = finished(Loop(poison, micro_batches=micro_batches, mode="deferred", plain=True))
    assert (incident.attempt, incident.action) == (BAD_AT + 1, "skipped")
    assert [s.sample for s in incident.bad_samples] == [BAD]
    assert same(state, plain)
    assert rng.equal(generators, others)


@pytest.mark.parametrize("poison", [nan_pixel, far_target])
def test_a_closure_that_computes_the_next_batch_by_then_accuses_nobody(
    poison: Poison, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "guard"):
        incident = Loop(poison, mode="deferred", unbound=True).run()
    assert incident is not None
    assert incident.bad_samples == []
    assert "one step later" in caplog.text


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("poison", [nan_pixel, far_target])
def test_an_excluded_sample_is_as_if_the_batch_never_had_it(poison: Poison, scaled: bool) -> None:
    excluding = Loop(poison, exclude_samples=True, scaled=scaled)
    incident, state, generators = finished(excluding)
    without = Loop(poison, missing=True, scaled=scaled)
    assert without.run() is None
    assert (incident.action, incident.excluded_samples) == ("applied", [BAD])
    assert (excluding.guard.totals.excluded_samples, excluding.guard.totals.skips) == (1, 0)
    assert same(state, without.state())
    assert rng.equal(generators, rng.capture())


@pytest.mark.parametrize(("poison", "value"), [(nan_pixel, math.nan), (far_target, 300.0)])
def test_two_bad_samples_are_both_excluded(poison: Poison, value: float) -> None:
    incident, _, _ = finished(Loop(poison, also_bad={BAD + 20: value}, exclude_samples=True))
    assert (incident.action, sorted(incident.excluded_samples)) == ("applied", [BAD, BAD + 20])


def test_samples_each_of_which_is_enough_are_found_together() -> None:
    def worst(out: Tensor, y: Tensor) -> Tensor:
        return (out - y).abs().max()

    others = {BAD + 1: 300.0, BAD + 12: 300.0}
    incident, _, _ = finished(Loop(far_target, also_bad=others, criterion=worst, exclude_samples=True))
    assert sorted(s.sample for s in incident.bad_samples) == [BAD, *others]
    assert sorted(incident.excluded_samples) == [BAD, *others]


def test_where_the_others_are_no_better_the_batch_is_handled_as_without_exclusion() -> None:
    others = dict.fromkeys(range(8, 28), 50.0)
    incident, state, _ = finished(Loop(far_target, also_bad=others, exclude_samples=True))
    other, plain, _ = finished(Loop(far_target, also_bad=others, plain=True))
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


@pytest.mark.parametrize(("value", "passes"), [(300.0, 30), (math.nan, 14)])
def test_one_of_many_samples_is_found_in_few_passes(value: float, passes: int) -> None:
    loop, ids, sizes = Loop(), list(range(SAMPLES)), []

    def closure(chosen: list[int] = ids) -> Tensor:
        sizes.append(len(chosen))
        return loop.loss(chosen)

    loop.poison = lambda _, y, place: y[place].fill_(value)
    for number in range(30):
        loop.bad = 77 if number == 29 else -1
        loop.optimizer.zero_grad()
        loop.guard.backward(loop.loss(ids))
        report = loop.guard.step(closure, samples=torch.tensor(ids))
    assert report.incident is not None
    assert [s.sample for s in report.incident.bad_samples] == [77]
    assert sizes.count(1) == 1
    assert len(sizes) < passes


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


def few_alone(model: nn.Module) -> nn.Module:
    """It cannot compute one sample."""
    return nn.Sequential(model, nn.BatchNorm1d(4, track_running_stats=False))


def contrast(out: Tensor, y: Tensor) -> Tensor:
    """0 / 0 for one sample."""
    others = ~torch.eye(len(out), dtype=torch.bool)
    return torch.cdist(out, y)[others].sum() / others.sum()


@pytest.mark.parametrize("place", [0, BAD, BATCH - 1])
@pytest.mark.parametrize("poison", [nan_pixel, far_target])
@pytest.mark.parametrize("special", [{"wrap": few_alone}, {"criterion": contrast}])
def test_a_sample_is_found_by_a_model_or_loss_that_cannot_compute_it_alone(
    special: dict[str, Any], poison: Poison, place: int
) -> None:
    incident = Loop(poison, place=place, **special).run()
    assert incident is not None
    assert [s.sample for s in incident.bad_samples] == [place]


def test_a_sample_that_ruins_only_the_buffers_is_found() -> None:
    def huge(x: Tensor, _: Tensor, place: int) -> None:
        x[place, 3] = 1e30

    incident, state, _ = finished(Loop(huge, exclude_samples=True))
    without = Loop(huge, missing=True)
    without.run()
    assert (incident.signal, [s.sample for s in incident.bad_samples]) == ("buffers", [BAD])
    assert incident.excluded_samples == [BAD]
    assert same(state, without.state())


@pytest.mark.parametrize("offset", [2**60 + 1, -(2**60) - 1])
def test_large_ids_are_exact(offset: int) -> None:
    loop = Loop()
    for number in range(BAD_AT + 1):
        batch = [(number * BATCH + i) % SAMPLES for i in range(BATCH)]
        loop.bad = batch[BAD] if number == BAD_AT else -1
        loop.optimizer.zero_grad()
        loop.backward(batch)

        def closure(ids: list[int] | None = None, batch: list[int] = batch) -> Tensor:
            return loop.loss(batch if ids is None else [i - offset for i in ids])

        report = loop.guard.step(closure, samples=[i + offset for i in batch])
    assert report.incident is not None
    assert [s.sample for s in report.incident.bad_samples] == [loop.bad + offset]


def test_a_sample_that_fills_a_ranks_batch_is_named_and_not_excluded() -> None:
    loop = Loop(exclude_samples=True)
    for number in range(BAD_AT):
        loop.attempt(number)
    loop.bad = 7
    loop.optimizer.zero_grad()
    loop.backward([7] * 4)
    report = loop.guard.step(lambda ids=(7,) * 4: loop.loss(list(ids)), samples=[7] * 4)
    assert report.incident is not None
    assert [s.sample for s in report.incident.bad_samples] == [7]
    assert report.excluded_samples == []


def test_samples_need_a_closure_that_takes_them() -> None:
    loop = Loop()
    loop.backward([1, 2, 3])
    with pytest.raises(GuardError, match="without a closure"):
        loop.guard.step(samples=[1, 2, 3])
    other = Loop()
    other.backward([1, 2, 3])
    with pytest.raises(GuardError, match="takes no argument"):
        other.guard.step(lambda: None, samples=[1, 2, 3])
    for ids in ("123", ["a", "b"], [1.5, 2.5], torch.rand(3), 7):
        last = Loop()
        last.backward([1, 2, 3])
        with pytest.raises(GuardError, match="integers"):
            last.guard.step(last.loss, samples=ids)


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


def _comes_back(rank: int, world_size: int, _: Path) -> list[tuple[list[int], list[int]]]:
    loop = Loop(bad_at=range(BAD_AT, 40, 2), rank=rank, ranks=world_size, exclude_samples=True)
    reports = [loop.attempt(number) for number in range(40)]
    return [(r.excluded_samples, r.excluded_ranks) for r in reports if r.excluded_samples or r.excluded_ranks]


def test_of_a_rank_with_a_bad_sample_in_many_batches_only_the_samples_are_excluded(tmp_path: Path) -> None:
    batches = range(BAD_AT, 40, 2)
    assert on_ranks(2, _comes_back, tmp_path)[1] == [([n * BATCH % SAMPLES + BAD], []) for n in batches]


def test_two_ranks_agree_on_the_sample_and_train_without_it(tmp_path: Path) -> None:
    one, other = on_ranks(2, _two_ranks, tmp_path)
    assert one == other == dict.fromkeys(("nan_pixel", "far_target"), ([(BAD, 0)], [BAD], True))
