"""What the guard cannot work with is refused when it is made, by a line that says what to pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import StepLR

from guard import ClipConfig, GradientGuard, GuardConfig, GuardError
from tests.guard.ranks import on_ranks


class ByEpoch:
    """As timm's schedulers are stepped."""

    def step(self, epoch: int, metric: float | None = None) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _: dict[str, Any]) -> None: ...


class Sam(torch.optim.SGD):
    """The interface of Sharpness-Aware Minimization."""

    def first_step(self, zero_grad: bool = False) -> None: ...

    def second_step(self, zero_grad: bool = False) -> None: ...


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, Sam])
@pytest.mark.parametrize("scheduled", [False, True])
def test_an_optimizer_that_needs_several_backward_passes_is_refused(kind: Any, scheduled: bool) -> None:
    model = nn.Linear(4, 1)
    optimizer = kind(model.parameters(), lr=0.1)
    if scheduled:  # which replaces optimizer.step by one that takes anything
        StepLR(optimizer, 1)
    with pytest.raises(GuardError, match=f"{kind.__name__}.*closure"):
        GradientGuard(model, optimizer)


def test_a_scheduler_is_refused_that_the_guard_cannot_step() -> None:
    model = nn.Linear(4, 1)
    with pytest.raises(GuardError, match=r"ByEpoch has step\(epoch\).*state={\"scheduler\": scheduler}"):
        GradientGuard(model, sgd(model), scheduler=ByEpoch())
    with pytest.raises(GuardError, match="StepLR belongs to another optimizer"):
        GradientGuard(model, sgd(model), scheduler=StepLR(sgd(nn.Linear(2, 2)), 1))
    with pytest.raises(GuardError, match="scheduler is a int, which has no step"):
        GradientGuard(model, sgd(model), scheduler=3)


def test_a_lazy_layer_is_refused_until_its_shape_is_known() -> None:
    model = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1))
    with pytest.raises(GuardError, match=r"lazy layer.*run one batch"):
        GradientGuard(model, sgd(model))
    model(torch.ones(1, 3))
    GradientGuard(model, sgd(model))


def test_swapped_arguments_are_refused() -> None:
    model: Any = nn.Linear(2, 1)
    optimizer: Any = sgd(model)
    with pytest.raises(GuardError, match=r"GradientGuard\(model, optimizer\)"):
        GradientGuard(optimizer, model)


def test_a_dict_is_a_config() -> None:
    model = nn.Linear(2, 1)
    config = {"clip": {"max_norm": 0.5}, "mode": "shadow"}
    assert GradientGuard(model, sgd(model), config).config == GuardConfig.model_validate(config)
    wrong: Any = "shadow"
    with pytest.raises(GuardError, match="config is a str: pass a GuardConfig"):
        GradientGuard(model, sgd(model), wrong)


def test_a_typo_in_a_config_names_the_field_that_was_meant() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match='unknown field: did you mean "max_norm"'):
        ClipConfig(**{"max_nrom": 1.0})
    with pytest.raises(ValueError, match=r'clip\.max_nrom\n *unknown field: did you mean "max_norm"'):
        GradientGuard(model, sgd(model), {"clip": {"max_nrom": 1.0}})
    with pytest.raises(ValueError, match='unknown field: did you mean "detect"'):
        GuardConfig(**{"detct": {}})
    with pytest.raises(ValueError, match="unknown field: mode, clip"):
        GuardConfig(**{"xyz": 1})


def made_too_early(rank: int, _: int, folder: Path) -> str:
    group = dist.group.WORLD
    dist.destroy_process_group()
    model = nn.Linear(8, 1)
    guard = GradientGuard(model, sgd(model))
    store = dist.FileStore(str(folder / "again"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    assert group is not None
    try:
        guard.backward(model(torch.ones(2, 8)).mean())
    except GuardError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_a_guard_made_before_the_process_group_is_refused(tmp_path: Path) -> None:
    for message in on_ranks(2, made_too_early, tmp_path):
        assert "before init_process_group" in message
        assert "make it after" in message
