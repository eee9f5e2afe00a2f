"""Mode auto is deferred only where a device can decide the whole step, and says what it chose."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from guard import GradientGuard, GuardConfig
from guard.act.fused import FusedStep
from guard.auto_mode import why_exact
from tests.guard.loops import differences, guarded_run
from tests.guard.simulated_cuda import Loop, SimulatedCuda

CUDA = {torch.device("cuda", 0)}


def fused(*, scaled: bool = False, **options: Any) -> FusedStep:
    parameters = [nn.Parameter(torch.zeros(2))]
    return FusedStep(torch.optim.AdamW(parameters, **{"fused": True, **options}), scaled=scaled)


def test_a_fused_optimizer_on_one_cuda_device_decides_there() -> None:
    assert why_exact(GuardConfig(mode="auto"), fused(), CUDA) is None


@pytest.mark.parametrize(
    ("config", "optimizer", "devices", "given", "reason"),
    [
        ({}, fused(), {torch.device("cpu")}, {}, "on cpu"),
        ({}, fused(), {*CUDA, torch.device("cuda", 1)}, {}, "several devices"),
        ({}, fused(), {*CUDA, torch.device("cpu")}, {}, "on cpu, cuda:0"),
        ({}, fused(fused=False), CUDA, {}, "fused=True"),
        ({}, fused(scaled=True), CUDA, {}, "GradScaler"),
        ({}, fused(), CUDA, {"shards": {"*": object()}}, "shards="),
        ({}, fused(), CUDA, {"ema": object()}, "ema="),
        ({"clip": {"kind": "agc"}}, fused(), CUDA, {}, "clip.kind agc"),
        ({"on_suspect": "clip"}, fused(), CUDA, {}, "on_suspect"),
        ({"exclude_samples": True}, fused(), CUDA, {}, "exclude_samples"),
        ({"rate": "act"}, fused(), CUDA, {}, "rate act"),
    ],
)
def test_what_the_host_must_decide_makes_it_exact(
    config: dict[str, Any], optimizer: FusedStep, devices: Any, given: dict[str, Any], reason: str
) -> None:
    found = why_exact(GuardConfig.model_validate({"mode": "auto", **config}), optimizer, devices, **given)
    assert found is not None
    assert reason in found


def test_on_the_cpu_it_is_the_exact_mode_to_the_bit_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = [{"kind": "nan_loss", "step": 5}]
    with caplog.at_level(logging.INFO, "guard"):
        auto = guarded_run({"mode": "auto"}, faults=faults).train(10)
    exact = guarded_run({"mode": "exact"}, faults=faults).train(10)
    assert [r.message for r in caplog.records if "mode auto" in r.message] == [
        "mode auto is exact: the model is on cpu"
    ]
    assert auto.guard is not None
    assert auto.guard.config.mode == "exact"
    assert not differences(auto.state(), exact.state())


def test_it_is_the_default_on_the_cpu_as_on_a_device() -> None:
    model = nn.Linear(2, 2)
    assert GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1)).config.mode == "exact"
    with SimulatedCuda() as device:
        assert Loop(device, {}).guard.config.mode == "deferred"
