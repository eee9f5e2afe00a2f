"""The benchmark of early warnings counts what it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from early_warning import networks
from early_warning.acting import Guarded
from early_warning.bench_warnings import Judged, crossing, judge, table
from early_warning.candidates import OURS, candidates
from early_warning.log import COLUMNS, Log, Logger


def log(name: str, losses: list[float], rates: list[float]) -> Log:
    steps = len(losses)
    none = np.zeros((0, 4))
    columns = np.ones((steps, 1, len(COLUMNS)))
    far = np.full(steps, np.nan)
    return Log(name, 4, np.array(losses), np.array(rates), far, columns, np.zeros(0), [], none, none)


def judged(name: str, score: list[float], *, chosen: bool, crossed: int | None) -> Judged:
    losses = [1.0] * len(score)
    scores = {"signal": np.array(score)}
    return Judged(log(name, losses, losses), scores, crossed is None, chosen, crossed)


def test_a_threshold_of_the_healthy_runs_is_what_leads_and_false_warnings_are_counted_with() -> None:
    healthy = judged("a-const-x1-s0", [0.5] * 99 + [1.0], chosen=True, crossed=None)
    explosion = judged("a-creep-x0.3-s0", [0.0] * 40 + [2.0] * 60, chosen=True, crossed=90)
    other = judged("a-creep-x0.3-s10", [0.0] * 100, chosen=False, crossed=90)
    (row,) = table([healthy, explosion, other])
    assert (row["runs"], row["warned"], row["median lead"], row["20 steps before"]) == (1, 1.0, 50, 1.0)
    assert (row["runs, held out"], row["warned, held out"]) == (1, 0.0)
    assert row["false per 10,000"] <= 100.0


def test_the_loss_has_exploded_where_it_stays_half_above_its_lowest_level() -> None:
    lone = [1.0] * 100
    lone[50] = 9.0
    assert crossing(log("mlp-a", lone, lone)) is None
    assert crossing(log("mlp-a", [1.0] * 60 + [1.6] * 40, lone)) == 60
    assert crossing(log("mlp-a", [1.0] * 60 + [1.3] * 40, lone)) is None
    assert crossing(log("gru-a", [1.0] * 60 + [1.3] * 40, lone)) == 60


def test_a_run_that_explodes_at_its_start_has_no_level() -> None:
    assert crossing(log("mlp-a", [1.0] * 20 + [1.6] * 80, [1.0] * 100)) is None


def test_a_healthy_name_is_healthy_and_the_network_decides_the_part() -> None:
    losses, rates = [1.0] * 60, [0.1] * 60
    assert judge(log("mlp-const-x1-s0", losses, rates)).healthy
    assert judge(log("zoo_gan-s0-1", losses, rates)).chosen
    assert not judge(log("zoo_gan-s10-1", losses, rates)).chosen
    assert judge(log("mlp-ramp-x30-s0", losses, rates)).chosen
    assert not judge(log("residual-ramp-x30-s0", losses, rates)).chosen


def test_the_chosen_networks_and_those_held_out_are_ten_or_more_each() -> None:
    assert min(len(networks.chosen()), len(networks.held_out())) >= 10
    assert not set(networks.chosen()) & set(networks.held_out())


def test_a_log_has_the_own_loss_the_secant_and_every_layer_and_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 1), torch.randn(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    logger = Logger(model, optimizer, again=lambda: model(inputs).square().mean())
    for _ in range(30):
        logger.update(model(inputs).square().mean())
    made = logger.log("a")
    made.save(tmp_path / "a.npz")
    read = Log.read(tmp_path / "a.npz")
    assert read.cols.shape == (30, 2, len(COLUMNS))
    assert np.array_equal(read.loss, made.loss)
    hessian = 2 * torch.cat([inputs, torch.ones(8, 1)], 1).T @ torch.cat([inputs, torch.ones(8, 1)], 1) / 8
    sharpness = read.cols[5, :, 2].sum() / read.cols[5, :, 3].sum()
    assert 0 < sharpness < float(torch.linalg.eigvalsh(hessian).max())
    assert read.rho[0, 2] == read.loss[1]
    assert np.isfinite(read.far[25:]).all()
    assert not np.isfinite(read.far[:25]).any()
    assert set(candidates(read)) >= {OURS, "own batch's loss falls less"}


def test_under_the_guard_the_log_is_the_history_that_stands() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 1), torch.randn(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guarded = Guarded(model, optimizer, config={"rate": "off"})
    for step in range(60):
        if step == 40:
            with torch.no_grad():
                model.weight.mul_(1e3)
        guarded.update(model(inputs).square().mean())
    losses = guarded.log("a").loss
    assert guarded.guard.totals.rollbacks["memory"] > 0
    assert len(losses) == guarded.guard.steps
    assert losses.max() == losses[0]
