"""The other methods of the survival benchmark are what their papers say: worked examples, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from survival.cases import cases
from survival.rivals import RIVALS, AdaGC, AutoClip, SkipStep, ZClip
from survival.tasks import tasks


def fed(
    method: type, norms: list[float], losses: list[float] | None = None
) -> tuple[list[float], list[bool]]:
    """The norm that is left of each gradient, and whether each update was made."""
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    rival = method([weight], torch.optim.SGD([weight], lr=0.0))
    left, made = [], []
    for i, norm in enumerate(norms):
        weight.grad = torch.tensor([0.6, 0.8], dtype=torch.float64) * norm
        made.append(rival.update(1.0 if losses is None else losses[i]))
        left.append(float(weight.grad.norm()))
    return left, made


def test_autoclip_clips_to_the_tenth_percentile_of_all_norms() -> None:
    left, _ = fed(AutoClip, [1.0, 2.0, 3.0, 100.0])
    assert left == pytest.approx([1.0, 1.1, 1.2, 1.3], rel=1e-4)


def test_zclip_scales_by_how_far_out_a_norm_is() -> None:
    norms = [1.0, 3.0] * 12 + [2.0]
    mean, deviation = 2.0, math.sqrt(24 / 25)
    left, _ = fed(ZClip, [*norms, 12.0])
    z = (12.0 - mean) / deviation
    assert left[:25] == pytest.approx(norms), "nothing is clipped in the warm-up"
    assert left[25] == pytest.approx(mean + 2.5**2 / z * deviation, rel=1e-4)


def test_adagc_holds_each_tensor_to_its_own_level_after_the_warm_up() -> None:
    left, _ = fed(AdaGC, [0.5] * 100 + [0.5, 50.0, 0.5])
    assert left[100] == pytest.approx(0.5)
    assert left[101] == pytest.approx(1.05 * 0.5)
    assert left[102] == pytest.approx(0.5)


def test_skip_step_leaves_out_what_is_beyond_six_deviations() -> None:
    norms = [1.0 + 0.1 * (-1) ** i for i in range(80)]
    _, made = fed(SkipStep, [*norms, 5.0, 1.0])
    assert made == [True] * 80 + [False, True]
    _, made = fed(SkipStep, [1.0] * 82, [*norms, math.nan, 1.0])
    assert made[80:] == [False, False], "a NaN in the window is there for 128 steps, as published"


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_trains(name: str) -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    rival = RIVALS[name]([weight], torch.optim.SGD([weight], lr=0.1))
    for _ in range(50):
        weight.grad = weight.detach().clone()
        rival.update(weight.item() ** 2)
    assert abs(weight.item()) < 3.0


@pytest.mark.parametrize("name", ["resnet", "gpt"])
def test_every_case_attacks_what_the_model_has(name: str) -> None:
    task = tasks()[name]
    model = task.build()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for case in cases(task):
        for fault in case.faults:
            assert fault.get("parameter", task.layer) in {**parameters, **buffers}, case.name
