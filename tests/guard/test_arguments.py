"""What the guard cannot work with is refused when it is made, by a line that says what to pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import StepLR

from guard import ClipConfig, GradientGuard, GuardConfig, GuardError, SpikeDetector
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


class Unphased(torch.optim.SGD):
    """Needs a closure, and shows it only when it steps."""

    def step(self, closure: Any = None) -> None:
        closure = torch.enable_grad()(closure)
        closure()
        super().step()


class AskingForOne(Unphased):
    """The same, with words."""

    def step(self, closure: Any = None) -> None:
        if closure is None:
            raise RuntimeError("sharpness aware minimization requires closure, but it was not provided")


class AdaptiveSAM(torch.optim.SGD):
    """Two passes within step, by name only."""


class Lookahead(torch.optim.Optimizer):
    """As public packages have it: around another optimizer, whose groups it shares."""

    def __init__(self, base_optimizer: torch.optim.Optimizer, *, whole: bool = True) -> None:
        if whole:
            super().__init__(base_optimizer.param_groups, {})
        self.base_optimizer = base_optimizer
        self.param_groups = base_optimizer.param_groups
        self.slow_weights = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.base_optimizer.step(closure)


class Several(torch.optim.Optimizer):
    """One optimizer a layer, stepped as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([p for part in parts for g in part.param_groups for p in g["params"]], {})
        self.parts = parts


class Bare:
    """What an optimizer must have by name, and not more."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters), "lr": 0.1}]

    def step(self) -> None: ...


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, Sam, AdaptiveSAM])
@pytest.mark.parametrize("scheduled", [False, True])
def test_an_optimizer_that_needs_several_backward_passes_is_refused(kind: Any, scheduled: bool) -> None:
    model = nn.Linear(4, 1)
    optimizer = kind(model.parameters(), lr=0.1)
    if scheduled:  # which replaces optimizer.step by one that takes anything
        StepLR(optimizer, 1)
    with pytest.raises(GuardError, match=f"{kind.__name__}.*closure"):
        GradientGuard(model, optimizer)


@pytest.mark.parametrize("kind", [Unphased, AskingForOne])
def test_a_step_that_fails_for_want_of_a_closure_names_the_optimizer(kind: Any) -> None:
    model = nn.Linear(4, 1)
    before = model.weight.detach().clone()
    guard = GradientGuard(model, kind(model.parameters(), lr=0.1))
    guard.backward(model(torch.ones(2, 4)).mean())
    with pytest.raises(GuardError, match=rf"{kind.__name__}\.step needs a closure.*choose an optimizer"):
        guard.step()
    assert torch.equal(model.weight, before)


def test_an_optimizer_around_another_one_is_refused_with_the_one_to_pass() -> None:
    model = nn.Linear(4, 1)
    for whole in (True, False):
        wrapper = Lookahead(torch.optim.Adam(model.parameters()), whole=whole)
        with pytest.raises(GuardError, match=r"Adam.*pass optimizer\.base_optimizer to the guard"):
            GradientGuard(model, wrapper)
        GradientGuard(model, wrapper.base_optimizer)
    parts = Several([torch.optim.SGD([p], lr=0.1) for p in model.parameters()])
    with pytest.raises(GuardError, match=r"parts \(SGD\).*pass one optimizer with a group for each"):
        GradientGuard(model, parts)
    bare: Any = Bare(model.parameters())
    with pytest.raises(GuardError, match=r"Bare is not made as torch's.*super\(\)\.__init__"):
        GradientGuard(model, bare)


def test_a_scheduler_is_refused_that_the_guard_cannot_step() -> None:
    model = nn.Linear(4, 1)
    with pytest.raises(GuardError, match=r"ByEpoch has step\(epoch\).*state={\"scheduler\": scheduler}"):
        GradientGuard(model, sgd(model), scheduler=ByEpoch())
    with pytest.raises(GuardError, match="StepLR belongs to another optimizer"):
        GradientGuard(model, sgd(model), scheduler=StepLR(sgd(nn.Linear(2, 2)), 1))
    with pytest.raises(GuardError, match="scheduler is a int, which has no step"):
        GradientGuard(model, sgd(model), scheduler=3)
    with pytest.raises(GuardError, match="scheduler is a class, which has no step"):
        GradientGuard(model, sgd(model), scheduler=StepLR)


def test_a_lazy_layer_is_refused_until_its_shape_is_known() -> None:
    model = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1))
    with pytest.raises(GuardError, match=r"lazy layer.*run one batch"):
        GradientGuard(model, sgd(model))
    model(torch.ones(1, 3))
    GradientGuard(model, sgd(model))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_module_is_refused_with_what_to_pass() -> None:
    model = torch.jit.script(nn.Linear(2, 1))
    with pytest.raises(GuardError, match=r"TorchScript.*pass the module that it was made of"):
        GradientGuard(model, sgd(model))


def test_swapped_arguments_are_refused() -> None:
    model: Any = nn.Linear(2, 1)
    optimizer: Any = sgd(model)
    with pytest.raises(GuardError, match=r"GradientGuard\(model, optimizer\)"):
        GradientGuard(optimizer, model)


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("scaler", True, "pass a torch.amp.GradScaler"),
        ("state", [StepLR], "pass a dict"),
        ("metrics", "gradguard", "pass a GuardMetrics or a registry"),
        ("journal", ".", "pass a path such as incidents.jsonl"),
        ("process_group", "default", "new_group"),
    ],
)
def test_an_argument_of_another_kind_is_refused_with_what_to_pass(
    argument: str, value: Any, said: str
) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(GuardError, match=said):
        GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1), **{argument: value})


@pytest.mark.parametrize("state", [None, {}, {"step": 3}])
def test_what_is_no_state_of_a_guard_is_not_loaded(state: Any) -> None:
    model = nn.Linear(2, 2)
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(GuardError, match=r"pass what guard\.state_dict\(\) returned"):
        guard.load_state_dict(state)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1/4", None])
def test_a_weight_that_is_no_number_is_refused(weight: Any) -> None:
    model = nn.Linear(2, 2)
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(GuardError, match="1 / k for each of k micro-batches"):
        guard.backward(model(torch.ones(1, 2)).sum(), weight=weight)


def test_a_change_is_announced_with_a_reason_and_a_number_of_steps() -> None:
    model = nn.Linear(2, 2)
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for words, said in (
        ((5,), "write what changes"),
        ((" ",), "write what"),
        (("smoothing", "50"), "at least 1"),
    ):
        with pytest.raises(GuardError, match=said):
            guard.expect_change(*words)  # type: ignore[arg-type]


def test_what_the_guard_is_to_call_is_checked_when_it_is_given() -> None:
    model = nn.Linear(2, 1)
    guard = GradientGuard(model, sgd(model))
    wrong: Any = model(torch.ones(1, 2)).sum()
    with pytest.raises(GuardError, match=r"closure is a Tensor: a loss goes to guard\.backward\(loss\)"):
        guard.step(wrong)
    with pytest.raises(GuardError, match="restore is a Tensor: pass a function of a step"):
        guard.restore_from(wrong)
    names: Any = "abc"
    guard.backward(wrong)
    with pytest.raises(GuardError, match="samples is 'abc': pass the ids"):
        guard.step(lambda _=None: wrong, samples=names)


def test_a_dict_is_a_config_of_a_detector_too() -> None:
    config: Any = {"sigmas": 6.0}
    assert SpikeDetector(config).config.sigmas == 6.0
    with pytest.raises(ValueError, match="did you mean"):
        SpikeDetector({"sigma": 6.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="instance of DetectConfig"):
        SpikeDetector(GuardConfig())  # type: ignore[arg-type]


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


def test_a_second_backward_of_one_batch_has_a_note_to_pass_the_sum() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    output = model(torch.ones(1, 2))
    guard.backward(output.sum())
    with pytest.raises(RuntimeError, match="second time") as raised:
        guard.backward(output.square().sum())
    assert raised.value.__notes__ == [
        "of several losses of one batch pass the sum: guard.backward(first + second)"
    ]
