"""A rollback is exact: replayed without measures, a run ends where it would have without the fault."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from guard import GradientGuard, GuardConfig, GuardMetrics
from tests.guard.loops import MakeOptimizer, adamw, differences, guarded_run, network, plain_run, sgd
from tests.guard.ranks import on_ranks

STEPS = 90
REPLAY = {"lr_backoff": 1.0, "weight_decay_factor": 1.0, "anchor_l2": 0.0, "data": "replay"}
SNAPSHOT = {"every_steps": 20}
FAULTS: dict[str, dict[str, Any]] = {
    "spiked rate": {"kind": "lr_spike", "factor": 1e4},
    "flipped weight": {"kind": "bitflip_weight", "bit": 30, "parameter": "*4.weight"},
    "poisoned data": {"kind": "poisoned_batch", "factor": 1e5, "times": 3},
    "nan batches": {"kind": "nan_loss", "times": 3},
}
OPTIMIZERS: dict[str, MakeOptimizer] = {"sgd": sgd, "adamw": adamw}


def replayed(fault: dict[str, Any], optimizer: str, **where: Any) -> tuple[list[str], int, int]:
    """Where a run with a fault, a rollback and a replay differs from the plain loop; rollbacks; attempts."""
    plain = plain_run(OPTIMIZERS[optimizer], **where).train_plain(STEPS)
    config = {"snapshot": SNAPSHOT, "recovery": REPLAY, "on_suspect": "skip"}
    run = guarded_run(config, OPTIMIZERS[optimizer], faults=[fault], **where).train(STEPS)
    rollbacks = sum(r.action == "rolled_back" for r in run.reports)
    same_data = [] if run.cursor.position == plain.cursor.position else ["data"]
    return differences(plain.state(), run.state()) + same_data, rollbacks, len(run.reports)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("fault", "step"), [*((f, 47) for f in FAULTS), ("nan batches", 0), ("poisoned data", 1)]
)
def test_a_replayed_run_ends_as_if_nothing_had_happened(fault: str, step: int, optimizer: str) -> None:
    changed, rollbacks, attempts = replayed({**FAULTS[fault], "step": step}, optimizer)
    if step == 47 or fault == "nan batches":  # before there is a history, a finite fault may pass
        assert rollbacks >= 1
    if rollbacks:
        assert changed == []
        assert attempts > STEPS


def ranks_replayed(rank: int, world_size: int, folder: Path) -> dict[tuple[str, Any], Any]:
    where = {"rank": rank, "world_size": world_size, "ddp": True}
    return {
        (name, culprit): replayed({**fault, "step": 47, "rank": culprit}, "adamw", **where)
        for name, fault in FAULTS.items()
        for culprit in (None, 1)
    }


@pytest.mark.slow
def test_two_ranks_replay_to_the_bit_after_a_fault_on_one_or_both(tmp_path: Path) -> None:
    for seen in on_ranks(2, ranks_replayed, tmp_path):
        for case, (changed, rollbacks, _) in seen.items():
            assert rollbacks >= 1, case
            assert changed == [], case


def nan_run(**config: Any) -> Any:
    """NaN from step 47 on for as long as it takes to roll back once."""
    settings = {"snapshot": SNAPSHOT, "budget": {"consecutive_skips": 2}, **config}
    return guarded_run(settings, faults=[{"kind": "nan_loss", "step": 47, "times": 2}])


def test_a_rollback_report_names_its_target_and_its_cost() -> None:
    report = nan_run().train(48).reports[48]
    assert (report.action, report.step, report.rolled_back_to) == ("rolled_back", 40, 40)
    assert report.incident is not None
    assert (report.incident.steps_lost, report.incident.step) == (7, 47)
    assert report.attempt == 49


def test_by_default_the_data_moves_on() -> None:
    run = nan_run().train(60)
    assert run.cursor.position == len(run.reports)


def test_replay_feeds_the_same_data_again() -> None:
    run = nan_run(recovery=REPLAY).train(60)
    assert run.cursor.position == 60


def test_other_states_are_rolled_back_with_the_weights() -> None:
    run = nan_run()
    ema = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    run = guarded_run(
        {"snapshot": SNAPSHOT, "budget": {"consecutive_skips": 1}},
        faults=[{"kind": "nan_loss", "step": 47}],
        ema=ema,
    )
    saved = {}
    while run.reports[-1:] == [] or run.reports[-1].action != "rolled_back":
        ema.update_parameters(run.model)
        if run.attempt().step == 40 and 40 not in saved:
            saved[40] = copy.deepcopy(ema.state_dict())
    assert not differences(saved[40], ema.state_dict())


def test_an_average_that_is_loaded_after_a_skip_stays_as_loaded() -> None:
    run = nan_run()
    ema = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    run = guarded_run(faults=[{"kind": "nan_loss", "step": 3}], ema=ema)
    assert run.guard is not None
    saved = copy.deepcopy(run.guard.state_dict())
    while run.attempt().action != "skipped":
        ema.update_parameters(run.model)
    for parameter in ema.parameters():
        parameter.data.fill_(0.5)
    loaded = copy.deepcopy(ema.state_dict())
    run.guard.load_state_dict(saved)
    run.attempt()
    assert not differences(loaded, ema.state_dict())


def test_weights_loaded_after_the_guard_was_made_are_the_first_healthy_state() -> None:
    run = guarded_run({"budget": {"consecutive_skips": 1}}, adamw, faults=[{"kind": "nan_loss", "step": 2}])
    other = plain_run(adamw, seed=5).train_plain(3)
    run.model.load_state_dict(other.model.state_dict())
    run.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
    loaded, start = run.state(), run.cursor.position
    run.train(2)
    assert run.attempt().rolled_back_to == 0
    assert not differences({**loaded, "scheduler": None}, {**run.state(), "scheduler": None})
    assert run.cursor.position == start + 3


def test_late_weights_still_replay_from_the_first_batch() -> None:
    config = {"budget": {"consecutive_skips": 1}, "recovery": REPLAY}
    run = guarded_run(config, faults=[{"kind": "nan_loss", "step": 2}])
    other = plain_run(seed=5)
    run.model.load_state_dict(other.model.state_dict())
    run.train(30)
    plain = plain_run(seed=5).train_plain(30)
    assert sum(r.action == "rolled_back" for r in run.reports) == 1
    assert not differences(plain.state(), run.state())


def test_a_copy_of_the_model_made_before_training_does_not_carry_the_guard_along() -> None:
    run = guarded_run()
    average = copy.deepcopy(run.model)
    run.train(3)
    average(torch.zeros(4, 8))
    assert run.train(5).reports[-1].step == 5


def test_weights_outside_the_model_are_rolled_back_too() -> None:
    model, temperature = network(), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate({"budget": {"consecutive_skips": 1}}))
    for factor in (1.0, 1.0, float("nan")):
        optimizer.zero_grad()
        guard.backward(model(torch.ones(8, 8)).square().mean() * temperature * factor)
        report = guard.step()
    assert report.rolled_back_to == 0
    assert temperature.item() == 1.0


def test_when_memory_does_not_help_an_older_state_comes_from_disk() -> None:
    """Resumed from a state that explodes again and again: after two returns to it, further back."""
    config = {"snapshot": SNAPSHOT, "recovery": {**REPLAY, "cooldown_steps": 0}}
    fault = {"kind": "lr_spike", "factor": 1e4, "step": 31, "times": 6}
    run = guarded_run(config, adamw, faults=[fault], metrics=GuardMetrics(job="test")).train(10)
    assert run.guard is not None
    assert run.guard.metrics is not None
    parts, asked = (run.model, run.optimizer, run.scheduler), []
    kept = copy.deepcopy([part.state_dict() for part in parts])

    def restore(before: int) -> int:
        asked.append(before)
        for part, state in zip(parts, kept, strict=True):
            part.load_state_dict(state)
        return 10

    run.train(30)
    run.guard.restore_from(restore)
    run.guard.load_state_dict(copy.deepcopy(run.guard.state_dict()))
    run.train(STEPS)
    back = [r for r in run.reports if r.action == "rolled_back"]
    assert [r.rolled_back_to for r in back] == [30, 30, 10]
    assert asked == [29]
    assert [r.incident.source for r in back if r.incident is not None] == ["memory", "memory", "disk"]
    assert run.guard.metrics.snapshot()["totals"]["rollbacks"] == {"memory": 2, "disk": 1}
    assert run.guard.steps == STEPS


def test_a_snapshot_out_of_turn_is_a_place_to_return_to() -> None:
    """As taken with a checkpoint: the run resumed from it and the uninterrupted one then roll back alike."""
    fault = {"kind": "lr_spike", "factor": 1e4, "step": 15}
    run = guarded_run({"snapshot": SNAPSHOT}, adamw, faults=[fault]).train(10)
    assert run.guard is not None
    run.guard.snapshot()
    run.train(30)
    assert [r.rolled_back_to for r in run.reports if r.action == "rolled_back"] == [10]
