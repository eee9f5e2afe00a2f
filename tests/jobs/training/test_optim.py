"""The optimizer and the schedule of a spec are torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from jobs.spec.job_spec import JobSpec, SpecError
from jobs.spec.optim import OptimizerSpec, ScheduleSpec
from jobs.training.optim import build_optimizer, build_schedule, schedule_factor


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
def test_the_decay_ends_at_its_final_value(name: str, middle: float) -> None:
    factor = schedule_factor(ScheduleSpec(name=name, warmup_steps=0), 100)
    assert factor(0) == 1.0
    assert math.isclose(factor(50), middle)
    assert math.isclose(factor(100), 1.0 if name == "constant" else 0.0, abs_tol=1e-12)
    assert factor(1000) == factor(100), "past the end it stays"


def test_wsd_stays_at_the_peak_and_falls_in_a_line_at_the_end() -> None:
    factor = schedule_factor(ScheduleSpec(name="wsd", warmup_steps=5, decay_steps=10, final=0.1), 100)
    assert [factor(step) for step in (4, 5, 50, 90)] == [1.0] * 4
    assert math.isclose(factor(95), 0.55)
    assert math.isclose(factor(100), 0.1)
    by_default = schedule_factor(ScheduleSpec(name="wsd"), 100)
    assert (by_default(80), by_default(90), by_default(100)) == (1.0, 0.5, 0.0)
    assert schedule_factor(ScheduleSpec(name="wsd", warmup_steps=2), 3)(2) == 1.0


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_fall_may_end_above_zero(name: str) -> None:
    factor = schedule_factor(ScheduleSpec(name=name, final=0.2, warmup_steps=10), 110)
    assert factor(10) == 1.0
    assert math.isclose(factor(60), 0.6)
    assert math.isclose(factor(110), 0.2)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"name": "cosine", "decay_steps": 5}, "schedule.decay_steps = 5: is for wsd"),
        ({"name": "constant", "final": 0.1}, "schedule.final = 0.1: is for schedules that fall"),
        ({"name": "wsd", "warmup_steps": 30, "decay_steps": 80}, "train.max_steps = 100: must be more than"),
        ({"name": "wdc"}, 'must be one of constant, cosine, linear, wsd; did you mean "wsd"?'),
    ],
)
def test_a_schedule_that_cannot_be_is_named(schedule: dict, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict({"schedule": schedule, "train": {"max_steps": 100}})
    assert said in str(caught.value)


def test_a_decay_that_does_not_fit_the_epochs_is_named_once_they_are_known() -> None:
    schedule = {"name": "wsd", "warmup_steps": 5, "decay_steps": 6}
    spec = JobSpec.from_dict({"schedule": schedule, "data": {"batch_size": 10}, "train": {"epochs": 1}})
    assert spec.total_steps(110) == 11
    with pytest.raises(SpecError, match=r"schedule.decay_steps = 6: must be at most 5"):
        spec.total_steps(100)


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
