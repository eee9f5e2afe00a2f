"""Every kind of clipping inside the guard: it trains, skips, rolls back, resumes, and is idle to the bit."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from guard import ClipConfig
from guard.clip.make import make_clipper
from tests.guard.clip.clip_cases import gradients_of, observed, parameters_of
from tests.guard.loops import Run, adamw, differences, facts, guarded_run, plain_run
from tests.guard.ranks import on_ranks

BITING: dict[str, dict[str, Any]] = {
    "auto": {"kind": "auto", "factor": 1.05},
    "norm": {"max_norm": 0.1},
    "norm inf": {"max_norm": 0.02, "norm_type": math.inf},
    "norm 1": {"max_norm": 0.5, "norm_type": 1},
    "value": {"max_value": 0.02},
    "group": {"kind": "group", "max_norm": 0.1},
    "agc": {"kind": "agc", "clip_factor": 0.02},
    "autoclip": {"kind": "autoclip", "percentile": 30, "history_steps": 40},
    "zclip": {"kind": "zclip", "z_thresh": 0.3, "alpha": 0.7, "warmup_steps": 10},
    "adagc": {"kind": "adagc", "warmup_steps": 10},
}
"""Limits that are reached in most runs, if not in every step."""
IDLE: dict[str, dict[str, Any]] = {
    "off": {"kind": "off"},
    "auto": {"kind": "auto", "factor": 100.0},
    "norm": {"max_norm": 1e6},
    "norm inf": {"max_norm": 1e6, "norm_type": math.inf},
    "norm 3": {"max_norm": 1e6, "norm_type": 3},
    "value": {"max_value": 1e6},
    "value read": {"max_value": 0.9},
    "group": {"kind": "group", "max_norm": 1e6},
    "group 1": {"kind": "group", "max_norm": 1e6, "norm_type": 1},
    "agc": {"kind": "agc", "clip_factor": 1e6},
    "autoclip": {"kind": "autoclip", "percentile": 100},
    "zclip": {"kind": "zclip", "z_thresh": 1e6},
    "adagc": {"kind": "adagc", "lambda_abs": 1e6, "lambda_rel": 1e6},
}
MEASURED = ["auto", "norm", "group", "autoclip", "zclip", "adagc"]
"""Kinds that need no norm beyond those that the guard has measured."""
REPLAY = {"lr_backoff": 1.0, "weight_decay_factor": 1.0, "anchor_l2": 0.0, "data": "replay"}
SNAPSHOT = {"every_steps": 10}


def run_of(clip: dict[str, Any], *, config: dict[str, Any] | None = None, **options: Any) -> Run:
    return guarded_run({"clip": clip, "snapshot": SNAPSHOT, **(config or {})}, adamw, **options)


def biting(name: str, **options: Any) -> Run:
    return run_of(BITING[name], **options)


def memory(run: Run) -> dict[str, Any]:
    assert run.guard is not None
    state: dict[str, Any] = run.guard.state_dict()["judge"]["clip"]
    return state


@pytest.mark.parametrize("name", IDLE)
def test_a_limit_that_is_never_reached_leaves_every_bit(name: str) -> None:
    plain = plain_run(adamw).train_plain(80, max_norm=None)
    run = run_of(IDLE[name]).train(80)
    assert {(r.action, r.clip_coef) for r in run.reports} == {("applied", 1.0)}
    assert not differences(plain.state(), run.state())


@pytest.mark.parametrize("name", BITING)
def test_a_run_that_is_clipped_still_learns(name: str) -> None:
    run = biting(name).train(120)
    assert sum(r.action == "clipped" for r in run.reports) >= 5
    first, last = run.reports[:20], run.reports[-20:]
    assert sum(r.loss for r in last) < 0.8 * sum(r.loss for r in first)


@pytest.mark.parametrize("name", BITING)
def test_the_report_describes_what_was_done_to_the_gradients(name: str) -> None:
    run = biting(name)
    assert run.guard is not None
    for _ in range(40):
        run.optimizer.zero_grad()
        run.guard.backward(run.loss())
        before = gradients_of(list(run.model.parameters()))
        report = run.guard.step()
        after = gradients_of(list(run.model.parameters()))
        changed = any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
        assert (report.action, changed) in {("applied", False), ("clipped", True)}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in after))
        assert norm / report.grad_norm == pytest.approx(report.clip_coef, rel=1e-5)
        assert report.clip_coef == 1.0 if report.action == "applied" else report.clip_coef <= 1.0
        if report.clip_threshold is not None:
            assert changed == (report.grad_norm > report.clip_threshold)
            assert norm <= report.clip_threshold * (1 + 1e-6)


@pytest.mark.parametrize("name", BITING)
def test_nan_is_skipped_and_teaches_nothing(name: str) -> None:
    run = biting(name, faults=[{"kind": "nan_loss", "step": 25}]).train(25)
    before, remembered = run.state(), copy.deepcopy(memory(run))
    assert run.attempt().action == "skipped"
    assert not differences(before, run.state())
    assert not differences(remembered, memory(run))


@pytest.mark.parametrize("name", BITING)
def test_a_rollback_restores_what_clipping_remembers(name: str) -> None:
    """Else a replayed run would not end where the undisturbed one does."""
    smooth = biting(name, config={"recovery": REPLAY}).train(60)
    broken = biting(
        name, config={"recovery": REPLAY}, faults=[{"kind": "nan_loss", "step": 37, "times": 3}]
    ).train(60)
    assert [r.rolled_back_to for r in broken.reports if r.action == "rolled_back"] == [30]
    assert not differences(smooth.state(), broken.state())
    assert not differences(memory(smooth), memory(broken))


@pytest.mark.parametrize("name", BITING)
def test_a_resumed_run_clips_as_the_uninterrupted_one(name: str) -> None:
    whole, resumed = biting(name).train(25), biting(name)
    assert whole.guard is not None
    assert resumed.guard is not None
    state = pickle.loads(pickle.dumps(whole.guard.state_dict()))
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    resumed.scheduler.load_state_dict(whole.scheduler.state_dict())
    resumed.cursor.load_state_dict(whole.cursor.state_dict())
    generators = torch.get_rng_state()
    resumed.guard.load_state_dict(state)
    whole.train(50)
    torch.set_rng_state(generators)
    resumed.train(50)
    assert not differences([facts(r) for r in whole.reports[25:]], [facts(r) for r in resumed.reports])
    assert not differences(whole.state(), resumed.state())
    assert not differences(memory(whole), memory(resumed))


@pytest.mark.parametrize("name", [*BITING, "off"])
def test_a_suspect_step_that_is_applied_is_held_to_the_recent_norm(name: str) -> None:
    fault = {"kind": "scaled_gradient", "step": 40, "factor": 20.0}
    clip = {"off": IDLE["off"], **BITING}[name]
    run = run_of(clip, config={"on_suspect": "clip"}, faults=[fault]).train(40)
    usual = sorted(r.grad_norm for r in run.reports[-24:])
    report = run.attempt()
    assert (report.verdict.kind, report.action) == ("suspect", "clipped")
    after = report.grad_norm * report.clip_coef
    assert after <= 2.0 * usual[13] * (1 + 1e-6)
    assert report.clip_threshold is not None
    assert after <= report.clip_threshold * (1 + 1e-6)


@pytest.mark.parametrize("mode", ["shadow", "off"])
@pytest.mark.parametrize("name", BITING)
def test_a_guard_that_may_not_act_clips_nothing(name: str, mode: str) -> None:
    plain = plain_run(adamw).train_plain(40, max_norm=None)
    run = biting(name, config={"mode": mode}).train(40)
    assert not differences(plain.state(), run.state())
    if mode == "off":
        assert {r.clip_threshold for r in run.reports} == {None}


class Operations(TorchDispatchMode):
    """Names what torch is asked to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MEASURED)
def test_the_gradients_are_not_read_again_and_written_only_when_clipped(name: str) -> None:
    parameters = parameters_of([(5,), (4, 4), (3, 2)])
    clipper = make_clipper(ClipConfig.model_validate(BITING[name]), parameters)
    done = set()
    for seed in range(40):
        for p, fresh in zip(parameters, parameters_of([(5,), (4, 4), (3, 2)], seed=seed), strict=True):
            p.grad = fresh.grad * (1e-3 if seed % 2 else 1.0)  # type: ignore[operator]
        seen = observed(parameters)
        with Operations() as operations:
            ratio = clipper.clip_(clipper.plan(seen, typical=1.0))
        assert operations.names == ([] if ratio is None else ["_foreach_mul_"])
        done.add(ratio is None)
    assert done == {True, False}


def two_ranks(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    where = {"rank": rank, "world_size": world_size, "ddp": True}
    found = {}
    for name in BITING:
        run = biting(name, **where).train(60)
        clipped = [(r.action, r.clip_coef, r.clip_threshold) for r in run.reports]
        found[name] = (clipped, memory(run), [p.detach().clone() for p in run.model.parameters()])
    return found


@pytest.mark.slow
def test_two_ranks_clip_alike_to_the_bit(tmp_path: Path) -> None:
    first, second = on_ranks(2, two_ranks, tmp_path)
    for name in BITING:
        assert not differences(first[name], second[name]), name
        assert any(action == "clipped" for action, _, _ in first[name][0]), name
