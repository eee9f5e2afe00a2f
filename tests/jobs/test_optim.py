"""The optimizer and the schedule of a spec are torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from jobs.optim import build_optimizer, build_schedule, schedule_factor
from jobs.spec_sections import OptimizerSpec, ScheduleSpec


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_each_name_gives_torchs_optimizer_fused(name: str, kind: type) -> None:
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    trained = torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(OptimizerSpec(name=name, lr=0.3), [frozen, trained])
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["fused"], len(group["params"])) == (0.3, True, 1)


def test_warmup_climbs_in_a_line_and_ends_at_the_peak() -> None:
    factor = schedule_factor(ScheduleSpec(name="constant", warmup_steps=4), 10)
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_the_decay_ends_where_its_name_says(name: str, middle: float) -> None:
    factor = schedule_factor(ScheduleSpec(name=name, warmup_steps=0), 100)
    assert factor(0) == 1.0
    assert math.isclose(factor(50), middle)
    assert math.isclose(factor(100), 1.0 if name == "constant" else 0.0, abs_tol=1e-12)
    assert factor(1000) == factor(100), "past the end it stays"


def test_a_restored_schedule_continues_identically() -> None:
    def fresh() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        return optimizer, build_schedule(ScheduleSpec(warmup_steps=3), optimizer, 20)

    (whole, schedule), (resumed, continued) = fresh(), fresh()
    for _ in range(7):
        whole.step()
        schedule.step()
    resumed.load_state_dict(whole.state_dict())
    continued.load_state_dict(schedule.state_dict())
    for _ in range(5):
        for optimizer, schedule_ in ((whole, schedule), (resumed, continued)):
            optimizer.step()
            schedule_.step()
        assert whole.param_groups[0]["lr"] == resumed.param_groups[0]["lr"]
