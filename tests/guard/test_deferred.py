"""Decided on the device, a step is what it would have been on the host; it is reported one step late."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from guard import GradientGuard, GuardConfig, GuardError, GuardHalt, StepReport
from tests.guard.loops import MakeOptimizer, Run, differences, guarded_run, network

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, fused=True),
}
AUTO: dict[str, Any] = {"snapshot": {"every_steps": 20}, "clip": {"kind": "auto"}}


def trained(
    mode: str, name: str, steps: int, *, faults: list[dict[str, Any]] | None = None, **options: Any
) -> Run:
    config = {**AUTO, "mode": mode, "recovery": {"cooldown_steps": 10}, **options}
    run = guarded_run(config, OPTIMIZERS[name], faults=faults or [])
    assert run.guard is not None
    while run.guard.steps < steps:
        run.attempt()
        if run.guard.steps >= steps and (report := run.guard.flush()) is not None:
            run.reports.append(report)
    return run


def test_a_skip_does_not_undo_what_the_average_learned_from_the_step_before() -> None:
    """Updated where the report is applied, it learns once from each step, though the report comes late."""
    faults = [{"kind": "nan_loss", "step": 4}]  # before there is a history, so decided on the host
    learned = {}
    for protected in (True, False):
        run = guarded_run({**AUTO, "mode": "deferred"}, OPTIMIZERS["adamw"], faults=faults)
        ema = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        if protected:
            run = guarded_run({**AUTO, "mode": "deferred"}, OPTIMIZERS["adamw"], faults=faults, ema=ema)
        for _ in range(10):
            if run.attempt().applied:
                ema.update_parameters(run.model)
        learned[protected] = ema.state_dict()
    assert "skipped" in [report.action for report in run.reports]
    assert learned[True]["n_averaged"] == 8
    assert not differences(learned[False], learned[True])


def events(run: Run) -> list[tuple[int, str, str]]:
    return [(r.attempt, r.action, r.verdict.kind) for r in run.reports if not r.pending]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_healthy_run_ends_with_the_weights_of_the_exact_mode(name: str) -> None:
    exact, deferred = trained("exact", name, 80), trained("deferred", name, 80)
    assert events(exact) == events(deferred)
    assert not differences(exact.state(), deferred.state())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "nan_loss"},
        {"kind": "scaled_gradient", "factor": 1e4},
        {"kind": "scaled_gradient", "factor": float("inf")},
    ],
    ids=["nan loss", "large gradient", "infinite gradient"],
)
def test_a_bad_step_is_skipped_by_the_optimizer_itself(name: str, fault: dict[str, Any]) -> None:
    faults = [{**fault, "step": 40}]
    exact, deferred = trained("exact", name, 80, faults=faults), trained("deferred", name, 80, faults=faults)
    assert [action for _, action, _ in events(deferred)].count("skipped") == 1
    assert events(exact) == events(deferred)
    assert not differences(exact.state(), deferred.state())


def test_a_skip_leaves_no_trace_and_is_journaled_a_step_later() -> None:
    run = trained("deferred", "adamw", 40)
    assert run.guard is not None
    before = {"model": run.state()["model"], "optimizer": run.state()["optimizer"]}
    run.optimizer.zero_grad()
    run.guard.backward(run.loss() * float("nan"))
    assert run.guard.step().pending
    after = {"model": run.state()["model"], "optimizer": run.state()["optimizer"]}
    assert not differences(before, after)
    report = run.guard.flush()
    assert report is not None
    assert (report.action, report.step) == ("skipped", 40)
    assert report.incident is not None


@pytest.mark.parametrize("mode", ["exact", "deferred"])
def test_ruined_statistics_that_neither_loss_nor_norm_shows_are_restored(mode: str) -> None:
    run = trained(mode, "adamw", 50)
    norm = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm1d))
    assert norm.running_mean is not None
    with torch.no_grad():
        norm.running_mean.add_(1e6)
    reports = [run.attempt() for _ in range(4)]
    assert [r.verdict.signal for r in reports if r.action == "skipped"] == ["buffers"]
    assert norm.running_mean.abs().max() < 10.0


@pytest.mark.parametrize("damaged", [False, True], ids=["applied", "rolled back"])
def test_weights_adopted_while_a_step_is_in_flight_stand_whatever_becomes_of_it(damaged: bool) -> None:
    run = trained("deferred", "adamw", 50, watch_buffers=["!*"])
    assert run.guard is not None
    if damaged:
        with torch.no_grad():
            run.model[4].weight.mul_(100.0)
    assert run.attempt().pending
    other = network(seed=5).state_dict()
    run.model.load_state_dict(other)
    run.guard.adopt_state()
    assert not differences(dict(other), dict(run.model.state_dict()))
    assert run.attempt().action == ("rolled_back" if damaged else "applied")
    report = run.guard.flush()
    assert report is not None
    assert report.action == "applied"


def test_damage_that_shows_late_is_rolled_back_with_the_step_after_it() -> None:
    run = trained("deferred", "adamw", 50, watch_buffers=["!*"])  # which show it at once
    assert run.guard is not None
    with torch.no_grad():
        next(iter(run.model.parameters())).mul_(40.0)
    reports: list[StepReport] = [run.attempt() for _ in range(12)]
    back = [r for r in reports if r.action == "rolled_back"]
    assert back
    assert back[0].rolled_back_to == 40
    assert run.guard.steps < 60


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_deferred_step_reads_nothing_from_the_device() -> None:
    """No ``item``, no ``bool``, no ``float`` of a tensor: on a GPU each is a wait."""
    run = trained("deferred", "adamw", 45)
    assert run.guard is not None
    for _ in range(3):
        run.attempt()
    with HostReads() as host:
        for _ in range(10):
            run.attempt()
    assert host.reads == []
    assert run.guard.state_dict()["late"] is not None  # it was left to the device


class Reads(TorchFunctionMode):
    """Counts the calls that bring a tensor's elements to the host."""

    names = ("cpu", "item", "tolist", "numpy", "__float__", "__bool__", "__int__")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in self.names
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layers", [1, 6])
def test_the_one_read_of_a_step_does_not_grow_with_the_model_or_the_measurement(layers: int) -> None:
    """The read is that of the step before, which is on the host by then. Every 25th step measures weights."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(520, 520) for _ in range(layers)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    config = GuardConfig.model_validate({"mode": "deferred", "snapshot": {"every_steps": 1000}})
    guard, counts, measured = GradientGuard(model, optimizer, config), [], 0
    for _ in range(54):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 520)).square().mean()
        with Reads() as reads:
            guard.backward(loss)
            measured += guard.step().update_norm is not None
        counts.append(reads.count)
    assert measured >= 2
    assert set(counts[21:]) == {1}  # until then the rate at the start is judged


def test_after_a_rollback_the_schedule_is_where_the_steps_are() -> None:
    """A snapshot is taken while its step is in flight: it has the schedule of after that step."""
    config = {**AUTO, "mode": "deferred", "recovery": {"cooldown_steps": 0}}
    faults = [{"kind": "nan_loss", "step": 45, "times": 3}]
    run = guarded_run(config, OPTIMIZERS["adamw"], faults=faults).train(60)
    assert run.guard is not None
    run.guard.flush()
    assert "rolled_back" in [report.action for report in run.reports]
    assert run.scheduler.last_epoch == run.guard.steps
    assert run.optimizer.param_groups[0]["lr"] == run.scheduler.get_last_lr()[0]


def test_the_budget_holds_and_the_last_healthy_state_is_left() -> None:
    config = {**AUTO, "mode": "deferred", "budget": {"consecutive_skips": 2, "rollbacks": 1}}
    faults = [{"kind": "nan_loss", "step": 43, "times": 1000}]
    run = guarded_run({**config, "recovery": {"cooldown_steps": 0}}, OPTIMIZERS["adamw"], faults=faults)
    with pytest.raises(GuardHalt):
        run.train(60, attempts=600)


@pytest.mark.parametrize(
    ("config", "fused", "message"),
    [
        ({}, False, "fused=True"),
        ({"clip": {"kind": "agc"}}, True, "clip.kind agc"),
        ({"on_suspect": "clip"}, True, "on_suspect"),
    ],
)
def test_what_a_device_cannot_decide_is_refused(config: dict[str, Any], fused: bool, message: str) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    with pytest.raises(GuardError, match=message):
        GradientGuard(model, optimizer, GuardConfig.model_validate({"mode": "deferred", **config}))
