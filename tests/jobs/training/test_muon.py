"""Muon with AdamW is one optimizer to everything that handles optimizers: guard, schedule, checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard import GradientGuard, GuardConfig
from guard.config import SnapshotConfig
from jobs.checkpoints.state import put_together, take_apart
from jobs.spec.job_spec import JobSpec, SpecError
from jobs.spec.optim import OptimizerSpec, ScheduleSpec
from jobs.training.muon import MuonWithAdamW
from jobs.training.optim import build_optimizer, build_schedule, tables_of

SPEC = OptimizerSpec(name="muon", lr=0.01)
TOKENS = torch.randint(0, 11, (200, 4, 3), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """An embedding, a norm, two matrices inside, a convolution, a last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.conv = nn.Conv1d(8, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        inner = self.second(self.first(self.embedding(tokens)).relu())
        return self.head(self.norm(self.conv(inner.transpose(1, 2)).transpose(1, 2)))


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def optimizer_of(model: nn.Module, spec: OptimizerSpec = SPEC, decay_on: Any = "auto") -> MuonWithAdamW:
    made = build_optimizer(spec, model.parameters(), decay_on=decay_on, tables=tables_of(model))
    assert isinstance(made, MuonWithAdamW)
    return made


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, TOKENS[step]).backward()
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_matrices_inside_go_to_muon_and_all_else_to_adamw():
    model = Net()
    optimizer = optimizer_of(model)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [sorted(names[id(p)] for p in group["params"]) for group in optimizer.param_groups]
    assert groups[0] == ["first.weight", "second.weight"]
    assert groups[1] == ["conv.weight", "embedding.weight", "head.weight"]
    assert all("bias" in name or "norm" in name for name in groups[2])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


def test_each_half_moves_as_torchs_own_optimizer_does():
    ours, reference = Net(), Net()
    inner = [reference.first.weight, reference.second.weight]
    rest = [p for p in reference.parameters() if all(p is not q for q in inner)]
    decay = [p for p in rest if p.ndim >= 2]
    plain = [p for p in rest if p.ndim < 2]
    muon = torch.optim.Muon(inner, lr=0.01, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": decay}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, fused=True)
    train(ours, optimizer_of(ours), range(10))
    for step in range(10):
        muon.zero_grad()
        adamw.zero_grad()
        loss_of(reference, TOKENS[step]).backward()
        muon.step()
        adamw.step()
    assert_equal(weights(ours), weights(reference))


@pytest.mark.parametrize("where", ["memory", "checkpoint"])
def test_a_saved_state_continues_identically(where: str):
    model = Net()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(5))
    saved = copy.deepcopy(optimizer.state_dict())
    if where == "checkpoint":
        tensors: dict[str, Tensor] = {}
        saved = put_together(take_apart(saved, "optimizer", tensors), tensors)
    resumed = copy.deepcopy(model)
    continued = optimizer_of(resumed)
    continued.load_state_dict(saved)
    train(model, optimizer, range(5, 10))
    train(resumed, continued, range(5, 10))
    assert_equal(weights(model), weights(resumed))


def test_the_schedule_moves_both_rates():
    optimizer = optimizer_of(Net())
    schedule = build_schedule(ScheduleSpec(name="linear"), optimizer, 10)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.009] * 3)


def test_a_skip_under_the_guard_moves_nothing():
    model = Net()
    optimizer = optimizer_of(model)
    guard = GradientGuard(model, optimizer, GuardConfig())
    for step in range(20):
        optimizer.zero_grad()
        guard.backward(loss_of(model, TOKENS[step]))
        guard.step()
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    guard.backward(loss_of(model, TOKENS[20]) * float("nan"))
    assert guard.step().action == "skipped"
    assert_equal(before, weights(model))
    after = optimizer.state_dict()
    for key, values in state["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in values.items())


def test_a_rollback_under_the_guard_returns_to_weights_and_moments():
    model = Net()
    optimizer = optimizer_of(model)
    guard = GradientGuard(model, optimizer, GuardConfig(snapshot=SnapshotConfig(every_steps=10)))
    kept: dict[int, tuple[list[Tensor], dict[str, Any]]] = {}
    report = None
    for attempt in range(80):
        if attempt == 60:
            for group in optimizer.param_groups:
                group["lr"] *= 3000
        optimizer.zero_grad()
        guard.backward(loss_of(model, TOKENS[attempt]))
        report = guard.step()
        if report.rolled_back_to is not None:
            break
        kept[guard.steps] = weights(model), copy.deepcopy(optimizer.state_dict())
    assert report is not None
    assert report.rolled_back_to is not None
    good, state = kept[report.rolled_back_to]
    assert_equal(good, weights(model))
    after = optimizer.state_dict()
    assert [group["lr"] for group in after["param_groups"]] == [0.01] * 3
    for key, values in state["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in values.items())


def test_a_loss_scale_leaves_the_steps_as_they_are():
    plain, scaled = Net(), Net()
    train(plain, optimizer_of(plain), range(5))
    optimizer, scaler = optimizer_of(scaled), torch.amp.GradScaler("cpu")
    for step in range(5):
        optimizer.zero_grad()
        scaler.scale(loss_of(scaled, TOKENS[step])).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_equal(weights(plain), weights(scaled))


def test_a_model_without_inner_matrices_or_with_nothing_else_trains_too():
    for model in (nn.Sequential(nn.LayerNorm(4)), nn.Sequential(nn.Linear(4, 4, bias=False))):
        optimizer = build_optimizer(SPEC, model.parameters())
        before = weights(model)
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(before[0], weights(model)[0])


def test_what_muon_cannot_do_is_refused_in_the_spec():
    for section in ({"optimizer": {"nesterov": True}}, {"guard": {"mode": "deferred"}}):
        optimizer = {"name": "muon", **section.get("optimizer", {})}
        with pytest.raises(SpecError) as caught:
            JobSpec.from_dict({**section, "optimizer": optimizer})
        assert "muon" in str(caught.value)
