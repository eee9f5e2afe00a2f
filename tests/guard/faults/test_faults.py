"""Faults fire where, when and as often as they were asked to, and nowhere else."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from guard import FaultConfig, FaultInjector
from guard.faults.injector import flip_bit_
from tests.guard.loops import MakeOptimizer, adamw, differences, guarded_run, network, sgd

WIDTH = {torch.float64: 64, torch.float32: 32, torch.bfloat16: 16, torch.float16: 16}
Pair = namedtuple("Pair", "x y")


def injector(*faults: dict[str, Any], rank: int = 0, model: nn.Module | None = None) -> FaultInjector:
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return FaultInjector(
        [FaultConfig.model_validate(f) for f in faults], model=model, optimizer=optimizer, rank=rank
    )


@pytest.mark.parametrize("dtype", WIDTH, ids=str)
def test_flipping_any_bit_twice_gives_the_number_back(dtype: torch.dtype) -> None:
    for bit in range(WIDTH[dtype]):
        tensor = torch.tensor([1.5, -0.3, 0.0, 7e4]).to(dtype)
        before = tensor.clone()
        flip_bit_(tensor, 1, bit)
        changed = tensor.view(torch.uint8) != before.view(torch.uint8)
        assert changed.sum() == 1, bit
        assert changed.view(4, -1)[1].any(), bit
        flip_bit_(tensor, 1, bit)
        assert torch.equal(tensor.view(torch.uint8), before.view(torch.uint8)), bit


def test_the_known_bits_of_a_float32() -> None:
    tensor = torch.ones(3)
    for i, bit in enumerate((31, 23, 30)):
        flip_bit_(tensor, i, bit)
    assert tensor.tolist() == [-1.0, 0.5, float("inf")]


def test_the_index_counts_in_the_tensors_own_order() -> None:
    tensor = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    flip_bit_(tensor, 7, 31)
    assert (tensor.flatten() < 0).nonzero().item() == 7
    scalar = torch.tensor(1.0)
    flip_bit_(scalar, 5, 31)
    assert scalar.item() == -1.0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_fires_from_its_step_on_its_rank_as_often_as_asked(rank: int) -> None:
    faults = injector({"kind": "nan_loss", "step": 3, "rank": 1, "times": 2}, rank=rank)
    fired = [bool(faults.begin(step)) for step in (0, 1, 2, 3, 3, 3, 4)]
    assert fired == [False] * 3 + ([True] * 2 if rank == 1 else [False] * 2) + [False] * 2


def test_a_replayed_step_does_not_fire_again() -> None:
    faults = injector({"kind": "nan_loss", "step": 3})
    assert [bool(faults.begin(step)) for step in (2, 3, 2, 3, 4)] == [False, True, False, False, False]


def test_the_count_is_kept_over_a_restart() -> None:
    fault = {"kind": "nan_loss", "step": 3, "times": 2}
    first, second = injector(fault), injector(fault)
    first.begin(3)
    second.load_state_dict(first.state_dict())
    assert [bool(second.begin(3)) for _ in range(2)] == [True, False]


def test_a_poisoned_batch_changes_only_its_floats_at_any_depth() -> None:
    faults = injector({"kind": "poisoned_batch", "step": 0, "factor": 10.0})
    batch = Pair({"a": torch.ones(2), "ids": torch.tensor([3])}, [torch.ones(1), "text", (torch.ones(1),)])
    faults.begin(0)
    poisoned = faults.batch(batch)
    assert poisoned.x["a"].tolist() == [10.0, 10.0]
    assert poisoned.x["ids"].tolist() == [3]
    assert (poisoned.y[0].item(), poisoned.y[1], poisoned.y[2][0].item()) == (10.0, "text", 10.0)
    assert batch.x["a"].tolist() == [1.0, 1.0]
    faults.begin(1)
    assert faults.batch(batch).x["a"].tolist() == [1.0, 1.0]


def test_a_nan_loss_is_nan_once() -> None:
    faults = injector({"kind": "nan_loss", "step": 1})
    losses = []
    for step in range(3):
        faults.begin(step)
        losses.append(faults.loss(torch.tensor(2.0)).isnan().item())
    assert losses == [False, True, False]


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.eval()
    model.zero_grad()
    model(torch.ones(4, 8)).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_scaled_gradient_scales_the_parameters_it_names() -> None:
    model = network()
    clean = gradients(model)
    faults = injector({"kind": "scaled_gradient", "step": 0, "factor": 8.0, "parameter": "0.*"}, model=model)
    faults.begin(0)
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, clean[name] * (8.0 if name.startswith("0.") else 1.0))
    faults.begin(1)
    assert all(torch.equal(g, clean[name]) for name, g in gradients(model).items())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_flipped_gradient_differs_in_one_element(layout: torch.memory_format) -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=layout)
    faults = injector({"kind": "bitflip_gradient", "step": 0, "index": 5, "bit": 31}, model=model)
    inputs = torch.randn(2, 3, 5, 5).to(memory_format=layout)
    seen = []
    for step in range(2):
        faults.begin(step)
        model.zero_grad()
        model(inputs).square().mean().backward()
        assert model.weight.grad is not None
        seen.append(model.weight.grad.flatten().clone())
    assert (seen[0] != seen[1]).nonzero().flatten().tolist() == [5]
    assert seen[0][5] == -seen[1][5]


def test_a_flipped_weight_is_in_the_largest_parameter_that_matches() -> None:
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    faults = injector({"kind": "bitflip_weight", "step": 0, "index": 9, "parameter": "[04].*"}, model=model)
    faults.begin(0)
    changed = {n: (p != before[n]).nonzero().tolist() for n, p in model.named_parameters()}
    assert changed.pop("0.weight") == [[1, 1]]
    assert not any(changed.values())


def test_a_spiked_rate_lasts_one_step_and_leaves_no_trace() -> None:
    spike = {"kind": "lr_spike", "step": 1, "factor": 100.0}
    run = guarded_run({"mode": "off"}, faults=[spike, {**spike, "factor": 2.0}])
    rates: list[float] = []
    run.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    run.scheduler = None
    for _ in range(3):
        run.attempt()
    assert rates[1] == pytest.approx(rates[0] * 200.0, rel=1e-4)
    assert rates[2] == pytest.approx(rates[0], rel=1e-4)


@pytest.mark.parametrize("kind", ["scaled_gradient", "bitflip_gradient", "bitflip_weight"])
def test_a_fault_that_matches_no_parameter_is_refused_at_once(kind: str) -> None:
    with pytest.raises(ValueError, match="no parameter matches 'nothing'"):
        injector({"kind": kind, "step": 0, "parameter": "nothing"})


def test_of_a_repeated_batch_only_the_hardware_fault_is_gone() -> None:
    model = network()
    clean = gradients(model)
    flip = {"kind": "bitflip_gradient", "step": 0, "index": 5, "bit": 30, "parameter": "0.weight"}
    faults = injector(flip, {"kind": "nan_loss", "step": 0}, model=model)
    faults.begin(0)
    assert differences(clean, gradients(model)) != []
    faults.repeat()
    assert differences(clean, gradients(model)) == []
    assert faults.loss(torch.tensor(1.0)).isnan()


@pytest.mark.parametrize("make", [adamw, sgd])
def test_a_bit_flips_in_the_moment_that_the_optimizer_has(make: MakeOptimizer) -> None:
    model = network()
    optimizer = make(list(model.parameters()))
    fault = FaultConfig.model_validate({"kind": "bitflip_moment", "step": 1, "parameter": "0.weight"})
    faults = FaultInjector([fault], model=model, optimizer=optimizer)
    faults.begin(0)
    gradients(model)
    optimizer.step()
    moments = optimizer.state[next(iter(model.parameters()))]
    name = "exp_avg" if "exp_avg" in moments else "momentum_buffer"
    before = moments[name].clone()
    faults.begin(1)
    assert int((before != moments[name]).sum()) == 1


@pytest.mark.parametrize(
    "container", [tuple, list, lambda items: dict(zip(("x", "labels"), items, strict=True))]
)
def test_noisy_labels_are_those_of_the_neighbours(container: Any) -> None:
    faults = injector({"kind": "label_noise", "step": 0})
    x, labels = torch.rand(3, 2), torch.tensor([4, 5, 6])
    faults.begin(0)
    noisy = faults.batch(container((x, labels)))
    values = list(noisy.values()) if isinstance(noisy, dict) else list(noisy)
    assert torch.equal(values[0], x)
    assert values[1].tolist() == [6, 4, 5]
    assert labels.tolist() == [4, 5, 6], "the data set is not touched"


def test_an_infinite_activation_is_that_of_the_layer_of_the_parameter() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    faults = injector({"kind": "infinite_activation", "step": 1, "parameter": "2.*"}, model=model)
    faults.begin(0)
    assert model(torch.ones(1, 3)).isfinite().all()
    faults.begin(1)
    assert model(torch.ones(1, 3)).isinf().all()


def test_poisoned_buffers_are_those_that_match() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    fault = {"kind": "poisoned_buffers", "step": 0, "parameter": "1.running_var", "factor": 1e6}
    injector(fault, model=model).begin(0)
    values = {name: buffer.tolist() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    assert values["1.running_var"] == [1e6, 1e6]
    assert values["0.running_var"] == [1.0, 1.0]
    assert values["1.running_mean"] == [0.0, 0.0]


def test_a_drifting_rate_grows_from_attempt_to_attempt_and_leaves_no_trace() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    fault = FaultConfig.model_validate({"kind": "lr_drift", "step": 1, "times": 3, "factor": 2.0})
    faults = FaultInjector([fault], model=nn.ParameterList([weight]), optimizer=optimizer)
    moved = []
    for step in range(5):
        faults.begin(step)
        before = weight.item()
        weight.grad = torch.ones(1)
        optimizer.step()
        moved.append(before - weight.item())
    assert moved == [0.5, 1.0, 2.0, 4.0, 0.5]
    assert optimizer.param_groups[0]["lr"] == 0.5
