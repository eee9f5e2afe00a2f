"""Optimizers and schedules by import path: they are the named classes, and what is wrong is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.checkpoints import CheckpointManager
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.training.optim import build_optimizer, build_schedule, check_by_path
from jobs.workloads import load_workload
from tests.jobs.training.training_fixture import assert_same_weights, begin, settle

MODULE = """
import torch

class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr, *, boost):
        super().__init__(params, {"lr": lr, "boost": boost})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * group["boost"] * p.grad

class Closure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)

def halved(optimizer, every):
    return torch.optim.lr_scheduler.StepLR(optimizer, every, 0.5)

def nothing(optimizer):
    return None

number = 3
"""


def spec_of(**sections: Any) -> JobSpec:
    return JobSpec.from_dict({"data": {"dataset": "digits", "batch_size": 32}, **sections})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rates.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_an_optimizer_by_path_gets_the_fields_and_the_options_of_the_spec() -> None:
    spec = spec_of(optimizer={"name": "torch.optim:RAdam", "lr": 0.01, "options": {"betas": [0.8, 0.9]}})
    weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(spec.optimizer, [weight, bias])
    assert type(optimizer) is torch.optim.RAdam
    (group,) = optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (0.01, (0.8, 0.9), 0.0)
    decayed = spec_of(optimizer={"name": "torch.optim:NAdam", "weight_decay": 0.1}).optimizer
    groups = build_optimizer(decayed, [weight, bias], decay_on="weights").param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert JobSpec.from_dict(spec.model_dump(mode="json")) == spec


def test_a_schedule_by_path_covers_the_steps_of_the_run(module: None) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0, momentum=0.9)
    cosine = build_schedule(
        spec_of(schedule={"name": "torch.optim.lr_scheduler:CosineAnnealingLR"}).schedule, optimizer, 50
    )
    assert cosine.T_max == 50  # type: ignore[attr-defined]
    cycle = {"name": "torch.optim.lr_scheduler:OneCycleLR", "options": {"max_lr": 0.4}}
    assert build_schedule(spec_of(schedule=cycle).schedule, optimizer, 60).total_steps == 60  # type: ignore[attr-defined]
    own = spec_of(schedule={"name": "own_rates:halved", "options": {"every": 2}}).schedule
    assert isinstance(build_schedule(own, optimizer, 60), torch.optim.lr_scheduler.StepLR)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"optimizer": {"name": "torch.optim:RAdm"}}, 'has no RAdm; did you mean "RAdam"?'),
        ({"optimizer": {"name": "torch.optom:RAdam"}}, "there is no module torch.optom"),
        (
            {"optimizer": {"name": "torch.optim:RAdam", "options": {"beta": [0.9, 0.9]}}},
            r'optimizer.options.beta = \[0.9, 0.9\].* no such argument .*did you mean "betas"\?',
        ),
        ({"optimizer": {"name": "torch.optim:RAdam", "options": {"eps": -1.0}}}, "Invalid epsilon value"),
        ({"optimizer": {"name": "torch.nn:Linear"}}, "torch.nn:Linear"),
        ({"optimizer": {"name": "own_rates:Plain"}}, "needs more arguments: set optimizer.options.boost"),
        ({"optimizer": {"name": "own_rates:Closure"}}, "needs a closure"),
        ({"optimizer": {"name": "own_rates:number"}}, "neither a class nor a function"),
        (
            {"optimizer": {"name": "own_rates:Plain", "weight_decay": 0.1, "options": {"boost": 1.0}}},
            "optimizer.weight_decay = 0.1: own_rates:Plain has no such argument",
        ),
        ({"schedule": {"name": "own_rates:nothing"}}, "makes a NoneType, not a torch LRScheduler"),
        ({"schedule": {"name": "torch.optim.lr_scheduler:ReduceLROnPlateau"}}, "needs a metric"),
        ({"schedule": {"name": "torch.optim.lr_scheduler:OneCycleLR"}}, "set schedule.options.max_lr"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_starts(
    module: None, sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        check_by_path(spec_of(**sections), 100)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"optimizer": {"name": "sgdd"}}, 'muon; did you mean "sgd"?'),
        ({"optimizer": {"name": "lion"}}, "muon, or your own as package.module:Class"),
        ({"optimizer": {"name": "torch.optim:"}}, "is not an import path"),
        ({"optimizer": {"options": {"eps": 1e-8}}}, "is for a class by its import path, and name is sgd"),
        ({"optimizer": {"name": "a.b:C", "options": {"lr": 1.0}}}, "write optimizer.lr"),
        ({"optimizer": {"name": "a.b:C", "momentum": 0.9}}, "write optimizer.options.momentum"),
        ({"optimizer": {"name": "a.b:C", "betas": [0.5, 0.5]}}, "write optimizer.options.betas"),
        ({"schedule": {"name": "a.b:C", "warmup_steps": 5}}, "is for schedules by name"),
        ({"schedule": {"options": {"gamma": 0.5}}}, "and name is cosine: remove it"),
    ],
)
def test_fields_of_the_wrong_kind_of_name_are_refused(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(**sections)
    assert said in str(caught.value)


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    spec = spec_of(
        model={"name": "resnet18", "stem": "tiny"},
        optimizer={"name": "torch.optim:NAdam", "lr": 0.002},
        schedule={"name": "torch.optim.lr_scheduler:OneCycleLR", "options": {"max_lr": 0.01}},
    )
    whole, part = (begin(load_workload(spec), spec, 8) for _ in range(2))
    whole.train(8)
    part.train(4)
    kept = part.keep(tmp_path)
    part.train(6)
    settle(kept)
    resumed = begin(load_workload(spec), spec, 8)
    assert CheckpointManager(tmp_path, resumed.parts).load_latest() == 4
    resumed.train(8)
    assert_same_weights(whole, resumed)
