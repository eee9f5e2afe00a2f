"""An outlier on healthy weights is skipped or clipped; what stays is rolled back."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from guard import GradientGuard, GuardConfig, SpikeDetector
from guard.decide.outliers import Outliers
from guard.records import Verdict
from guard.types import Decision

SIGMAS = GuardConfig().detect.sigmas


def spike(ratio: float = 1.5) -> Verdict:
    return Verdict("spike", "loss", ratio * SIGMAS, 0.1)


def norm(ratio: float) -> Verdict:
    return Verdict("suspect", "grad_norm", ratio * SIGMAS, 0.1)


def ask(
    outliers: Outliers,
    verdict: Verdict,
    attempt: int,
    *,
    usual: bool = False,
    mild: bool = False,
    far: bool = False,
    skipped: bool = False,
) -> Decision | None:
    return outliers.instead(verdict, attempt, usual=usual, mild=mild, moved_far=lambda: far, skipped=skipped)


def test_an_outlier_is_skipped_and_the_third_of_eight_is_not() -> None:
    outliers = Outliers(SIGMAS)
    found = [ask(outliers, spike(), attempt) for attempt in (10, 13, 17, 18, 40)]
    assert [d is not None and d.rung == "skip" for d in found] == [True, True, False, False, True]


def test_a_mild_loss_is_the_batch_s_until_it_is_the_third_in_a_row() -> None:
    """As of a rare class, which the fifth series shows to be one: from then on it is learned."""
    outliers = Outliers(SIGMAS)
    found = [ask(outliers, spike(), attempt, mild=True) for attempt in (10, 12, 14, 17, 21, 22, 23)]
    assert [d and d.rung for d in found] == ["skip"] * 4 + ["clip"] * 2 + [None]


def test_norms_that_surge_between_others_are_the_batch_s_while_the_loss_is_not_high() -> None:
    """As of a likelihood whose gradient grows while its variance shrinks."""
    outliers = Outliers(SIGMAS)
    surge = Verdict("spike", "grad_norm", 2.2 * SIGMAS, 0.1)
    found = [ask(outliers, surge, attempt) for attempt in (10, 12, 14, 17, 21, 22, 23)]
    assert [d and d.rung for d in found] == ["skip"] * 4 + ["clip"] * 2 + [None]


def test_norms_that_surge_are_skipped_first_and_one_batch_again_and_again_is_clipped() -> None:
    """Neither is a rollback: nothing was applied, and the loss is normal."""
    surge = Verdict("spike", "grad_norm", 3.5 * SIGMAS, 0.1)
    found = [ask(Outliers(SIGMAS), surge, 10)]
    outliers = Outliers(SIGMAS)
    rows = (norm(3.5), surge, surge, surge)
    found += [ask(outliers, row, 20 + i, skipped=True) for i, row in enumerate(rows)]
    assert [d and d.rung for d in found] == ["skip", "skip", "skip", "clip", "clip"]


def test_where_the_weights_moved_far_nothing_else_is_right_than_a_rollback() -> None:
    assert ask(Outliers(SIGMAS), spike(), 10, far=True) is None


def test_where_data_is_replayed_no_batch_is_lost_to_a_skip() -> None:
    assert ask(Outliers(SIGMAS, replays=True), spike(), 10) is None


@pytest.mark.parametrize(("usual", "skips"), [(False, 1), (True, 2)])
def test_an_overwhelming_loss_is_an_outlier_once_unless_the_run_began_with_it(
    usual: bool, skips: int
) -> None:
    """On weights that have not moved far it is the batch's; a second one soon after may well be theirs."""
    outliers = Outliers(SIGMAS)
    found = [ask(outliers, spike(10.0 + at), at, usual=usual) for at in (10, 12, 14)]
    assert [d and d.rung for d in found] == ["skip"] * skips + [None] * (3 - skips)
    assert ask(outliers, spike(10.0), 40, usual=usual) is not None
    assert ask(Outliers(SIGMAS), spike(10.0), 10, far=True) is None


def test_a_norm_that_is_high_alone_again_is_clipped_unless_it_is_very_high() -> None:
    outliers = Outliers(SIGMAS)
    found = [ask(outliers, norm(ratio), at) for at, ratio in ((10, 1.2), (12, 1.2), (13, 2.5), (40, 1.2))]
    assert [d and d.rung for d in found] == [None, "clip", "skip", None]


def test_a_round_trip_continues_identically() -> None:
    outliers, other = Outliers(SIGMAS), Outliers(SIGMAS)
    for attempt in (10, 12):
        ask(outliers, spike(), attempt)
    other.load_state_dict(json.loads(json.dumps(outliers.state_dict())))
    assert ask(other, spike(), 14) is None
    assert ask(Outliers(SIGMAS), spike(), 14) is not None


def test_a_batch_with_a_loss_among_many_without_is_none_to_roll_back_for() -> None:
    """As of triplets that are almost all apart: nothing but every seventh batch trains."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    guard = GradientGuard(model, optimizer)
    for attempt in range(150):
        near, far = model(torch.randn(16, 8)).chunk(2)
        optimizer.zero_grad()
        guard.backward(torch.relu(near.mean() - far.mean() + (0.5 if attempt % 7 == 0 else -5.0)))
        guard.step()
    assert sum(guard.totals.rollbacks.values()) == 0
    assert guard.totals.skips <= 3


def sparse(rows: int) -> list[float]:
    """Norms of which two in three are zero."""
    return [0.0 if row % 3 else 1.0 + 0.1 * (row % 7) for row in range(rows)]


def test_norms_of_zero_show_no_level_and_clip_nothing() -> None:
    detector, config = SpikeDetector(), GuardConfig()
    for value in sparse(300):
        assert detector.observe(1.0, value).kind == "ok"
    level = detector.clip_level(config.clip.factor)
    assert level is not None
    assert 1.0 <= level <= 1.7


def test_a_norm_that_stays_zero_has_vanished() -> None:
    detector = SpikeDetector()
    kinds = [detector.observe(1.0, 1.0 if row < 200 else 0.0).kind for row in range(600)]
    assert "vanishing" in kinds


def test_the_clip_level_is_that_of_the_batches_that_train() -> None:
    """One norm in ten is fifty times the median: those are ordinary, and not clipped."""
    detector = SpikeDetector()
    for row in range(600):
        detector.observe(1.0, (0.5 if row % 10 == 0 else 0.01) * (1 + 0.05 * (row % 4)))
    level = detector.clip_level(3.0)
    assert level is not None
    assert 3.0 * level >= 0.5


def test_the_clip_level_of_ordinary_noise_is_the_median() -> None:
    detector = SpikeDetector()
    for row in range(600):
        detector.observe(1.0, 1.0 + 0.3 * (row % 5))
    assert detector.clip_level(3.0) == detector.typical("grad_norm")
