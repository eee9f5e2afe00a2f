"""Steps that overshoot, seen on the batch's own loss, and the duel that then finds the rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from guard import GradientGuard
from guard.decide.overshoot import MEASURED, Overshoot
from guard.decide.start_rate import StartRate
from tests.guard.loops import NEVER, differences


class Text(nn.Module):
    """Two blocks of attention that predict the next letter."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(128, 32), nn.Parameter(torch.zeros(16, 32))
        block = nn.TransformerEncoderLayer(32, 4, 128, dropout, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 128)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(16))

    def forward(self, tokens: Tensor) -> Tensor:
        assert isinstance(self.mask, Tensor)
        blocks = self.blocks(self.tokens(tokens) + self.places, mask=self.mask, is_causal=True)
        return self.head(self.norm(blocks))


LETTERS = torch.tensor([byte for byte in inspect.getsource(F).encode() if byte < 128])


class Excerpts:
    """Batches of eight excerpts of a source text; its state is where the run is in them."""

    def __init__(self, seed: int = 0) -> None:
        self._order = torch.Generator().manual_seed(seed)

    def batch(self) -> Tensor:
        return LETTERS[torch.randint(len(LETTERS) - 17, (8, 1), generator=self._order) + torch.arange(17)]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.set_state(state["order"])


def loss_of(model: nn.Module, texts: Tensor) -> Tensor:
    return F.cross_entropy(model(texts[:, :-1]).flatten(0, 1), texts[:, 1:].flatten())


def trained(
    rate: float,
    config: dict[str, Any],
    steps: int,
    *,
    closure: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
    optimizer_of: Callable[..., Optimizer] = AdamW,
    cursor: bool = False,
) -> tuple[nn.Module, GradientGuard, list[float]]:
    torch.manual_seed(seed)
    model, data = Text(dropout), Excerpts(seed)
    optimizer = optimizer_of(model.parameters(), lr=rate)
    guard = GradientGuard(model, optimizer, config, data=data if cursor else None)
    losses = []
    while guard.steps < steps:
        texts = data.batch()
        optimizer.zero_grad()
        guard.backward(loss_of(model, texts))
        losses.append(guard.step((lambda texts=texts: loss_of(model, texts)) if closure else None).loss)
    return model, guard, losses


@pytest.mark.parametrize("size", [0.5, 1.0, 1.9])
@pytest.mark.parametrize("max_norm", [NEVER, 1e-3])
def test_along_a_parabola_a_step_gains_what_its_length_says(size: float, max_norm: float) -> None:
    weight = nn.Linear(4, 1, bias=False).double()
    rate = size if max_norm == NEVER else 1e3 * size
    optimizer = torch.optim.SGD(weight.parameters(), lr=rate)
    guard = GradientGuard(weight, optimizer, {"rate": "act", "clip": {"max_norm": max_norm}})

    def loss() -> Tensor:
        return weight.weight.square().sum() / 2

    norm = float(weight.weight.detach().norm())
    guard.backward(loss())
    guard.step(loss)
    length = size if max_norm == NEVER else size / norm  # of the step, in units of the way to the bottom
    ((change, predicted),) = guard._parts.decider.rate.start.overshoot.state_dict()["changes"]
    assert change / -predicted == pytest.approx(-1 + length / 2, abs=1e-4)


def test_a_plateau_is_left_by_a_lower_rate_where_the_loop_passes_a_closure() -> None:
    held_out = Excerpts(seed=99)
    texts = torch.cat([held_out.batch() for _ in range(20)])

    def end(rate: float, mode: str, *, closure: bool = True) -> float:
        model, _, _ = trained(rate, {"rate": mode}, 70, closure=closure)
        return float(loss_of(model, texts).detach())

    right = end(0.005, "off")
    assert end(0.15, "act", closure=False) > right + 0.3
    assert end(0.15, "act") < right + 0.1


@pytest.mark.parametrize("seed", range(2))
def test_a_right_rate_is_measured_and_the_run_is_the_same_to_the_bit(seed: int) -> None:
    act, guard, losses = trained(0.003, {"rate": "act"}, 50, dropout=0.1, seed=seed)
    off, _, expected = trained(0.003, {"rate": "off"}, 50, dropout=0.1, seed=seed)
    assert losses == expected
    assert not differences(dict(act.state_dict()), dict(off.state_dict()))
    assert len(guard._parts.decider.rate.start.overshoot.state_dict()["changes"]) == MEASURED
    assert not any(guard.totals.rollbacks.values())


def test_a_rate_that_only_seems_too_high_is_tried_against_a_third_and_the_run_is_the_same_to_the_bit() -> (
    None
):
    momentum = partial(SGD, momentum=0.9)
    usual = partial(trained, 0.2, steps=90, dropout=0.1, seed=1, optimizer_of=momentum)
    act, guard, losses = usual(config={"rate": "act"}, cursor=True)
    off, _, expected = usual(config={"rate": "off"}, cursor=True)
    assert guard.totals.rollbacks["memory"] == 2, "to the third and back"
    assert losses[-90:] == expected
    assert not differences(dict(act.state_dict()), dict(off.state_dict()))
    _, guard, _ = usual(config={"rate": "act"})
    assert not any(guard.totals.rollbacks.values()), "without a cursor the batches do not come again"
    _, guard, _ = usual(config={"rate": "act", "total_steps": 2999}, cursor=True)
    assert not any(guard.totals.rollbacks.values()), "it would take more than a twentieth of the run"


def test_a_rate_that_seems_too_high_and_ends_higher_than_a_third_is_cut() -> None:
    duel = StartRate(oldest_step=lambda: 0, replays=True)
    for _ in range(MEASURED):
        duel.overshoot.add(-0.6, -1.0)
    assert "from the start with 0.3 of 0.9" in first_steps(duel, 0.9, 1.6)[0]
    assert "from the start with 0.1 of 0.9" in first_steps(duel, 0.3, 1.4)[0]
    assert "again from the start with 0.3 of 0.9" in first_steps(duel, 0.1, 1.5)[0]
    assert (duel.cuts, duel.open) == (1, False)


@pytest.mark.parametrize(("end", "share"), [(1.6, -0.7), (0.09, -0.6)])
def test_a_run_that_learns_with_steps_of_a_usual_length_is_not_tried(end: float, share: float) -> None:
    rule = StartRate(oldest_step=lambda: 0, replays=True)
    for _ in range(MEASURED):
        rule.overshoot.add(share, -1.0)
    assert not first_steps(rule, 0.9, end)


def test_a_third_whose_steps_overshoot_does_not_end_its_own_duel() -> None:
    rule = StartRate(oldest_step=lambda: 0, replays=True)
    for share in (-0.6, 1.0):
        for _ in range(MEASURED):
            rule.overshoot.add(share, -1.0)
        (found,) = first_steps(rule, 0.9 if share < 0 else 0.3, 1.6)
    assert found.endswith("again from the start with 0.9")
    assert (rule.cuts, rule.open) == (0, False)


@pytest.mark.parametrize(("attempts", "found"), [(90, False), (100, True)])
def test_where_the_start_is_gone_a_duel_begins_at_the_oldest_state(attempts: int, found: bool) -> None:
    rule = StartRate(oldest_step=lambda: 20, replays=True)
    for _ in range(MEASURED):
        rule.overshoot.add(-0.6, -1.0)
    assert bool(first_steps(rule, 0.9, 1.6, attempts)) == found


def test_a_closure_that_runs_its_own_backward_is_left_alone() -> None:
    torch.manual_seed(0)
    model = Text()
    optimizer = AdamW(model.parameters(), lr=0.003)
    guard = GradientGuard(model, optimizer, {"rate": "act"})
    data = Excerpts()
    for _ in range(12):
        texts = data.batch()

        def closure(texts: Tensor = texts) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, texts)
            loss.backward()
            return loss

        assert guard.step(closure).applied
    assert not guard._parts.decider.rate.start.overshoot.state_dict()["changes"]


def first_steps(rule: StartRate, rate: float, end: float, attempts: int = 100) -> list[str]:
    """The reasons of what is found while the loss goes from 2 to ``end``, until the first return."""
    found: list[str] = []
    for step in range(attempts):
        loss = end + (2.0 - end) * math.exp(-step / 4)
        finding = rule.observe(loss, rate, travelled=lambda: None, step=step)
        found += [] if finding is None else [finding.reason]
        if finding is not None or not rule.open:
            break
    return found


def test_a_third_of_the_rate_is_kept_while_the_first_steps_end_lower_with_it() -> None:
    rule = StartRate()
    for _ in range(MEASURED):
        rule.overshoot.add(-0.1, -1.0)
    assert "10% of what its gradient predicts" in first_steps(rule, 0.9, 1.6)[0]
    assert "about 3 times too high; training goes on at 0.3 of 0.9" not in first_steps(rule, 0.3, 1.5)[0]
    (lower,) = first_steps(rule, 0.1, 1.2)
    (back,) = first_steps(rule, 0.1 / 3, 1.3)
    assert "from the start with 0.033 of 0.9" in lower
    assert "again from the start with 0.1 of 0.9" in back
    assert (rule.cuts, rule.open) == (2, False)


def test_a_run_that_was_never_cut_is_compared_with_nothing() -> None:
    rule = StartRate()
    assert not first_steps(rule, 1.0, 1.6)
    assert (rule.cuts, rule.open) == (0, False)


@pytest.mark.parametrize(("share", "found"), [(-0.5, False), (-0.3, True), (math.nan, True)])
def test_the_mean_of_eight_measurements_decides(share: float, found: bool) -> None:
    rule = Overshoot()
    for _ in range(MEASURED - 1):
        rule.add(share, -1.0)
    assert rule.found is None
    rule.add(1.0, 0.0)  # a rate of zero, at the start of a warm-up, measures nothing
    assert rule.found is None
    rule.add(share, -1.0)
    assert (rule.found is not None) == found
