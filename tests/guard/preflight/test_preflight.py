"""The pre-flight distinguishes networks that explode, vanish, die or overflow, and passes healthy ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard import run_preflight
from guard.act import rng
from guard.preflight import PreflightReport, learning_rate_range

WIDTH, DEPTH = 64, 20
INPUTS = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(32) % 10


def mlp(activation: Callable[[], nn.Module], gain: float, depth: int = DEPTH) -> nn.Sequential:
    """Linear layers whose weights have variance gain^2 / fan-in, and no biases."""
    generator = torch.Generator().manual_seed(1)
    parts: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(layer.weight, std=gain * WIDTH**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
        parts += [layer, activation()]
    last = nn.Linear(WIDTH, 10)
    nn.init.uniform_(last.weight, -(WIDTH**-0.5), WIDTH**-0.5, generator=generator)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*parts, last)


def flight(model: nn.Module, inputs: Tensor = INPUTS, precision: str = "fp32") -> PreflightReport:
    loss = lambda m: nn.functional.cross_entropy(m(inputs), TARGETS)  # noqa: E731
    return run_preflight(model, loss, precision=precision)  # type: ignore[arg-type]


def healthy() -> nn.Sequential:
    return mlp(nn.ReLU, 2**0.5)


def dying() -> nn.Sequential:
    model = healthy()
    nn.init.constant_(model[10].bias, -100.0)
    return model


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


class FunctionalRelu(nn.Module):
    """The rectifier is no module here: only the gradient shows that the units are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)
        nn.init.constant_(self.first.bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Rootless(nn.Module):
    """Finite going forward; going back, the root of zero has an infinite slope."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last((h * 0).abs().sqrt())


@pytest.mark.parametrize(
    ("model", "verdict", "layer", "advice"),
    [
        (healthy(), "fine", None, ""),
        (mlp(nn.Tanh, 1.0), "fine", None, ""),
        (mlp(nn.ReLU, 4.0), "exploding", "18 20", "model.init: lsuv"),
        (mlp(nn.Identity, 3.0), "exploding", "18", "model.init: lsuv"),
        (mlp(nn.ReLU, 0.5), "vanishing", "20 22 24", "model.init: lsuv"),
        (mlp(nn.Sigmoid, 1.0), "vanishing", "28 30 32", "model.init: lsuv"),
        (dying(), "dead", "10", "model.init: kaiming"),
        (FunctionalRelu(), "dead", "first", "model.init: kaiming"),
        (nn.Sequential(nn.Linear(WIDTH, 10), Logarithm()), "nan", "1", "this layer"),
        (Rootless(), "nan", "first", "this layer"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_each_disease_has_its_name_its_layer_and_its_cure(
    model: nn.Module, verdict: str, layer: str | None, advice: str
):
    report = flight(model)
    assert report.verdict == verdict, report.line()
    assert report.layer in (layer.split() if layer else [None])
    assert advice in report.suggestion
    assert report.fine == (verdict == "fine")


def test_what_overflows_in_half_precision_is_fine_in_the_others():
    big = INPUTS * 1e6
    assert flight(healthy(), big, "fp16").verdict == "overflow"
    assert flight(healthy(), big, "bf16").verdict == "fine"
    assert flight(healthy(), big, "fp32").verdict == "fine"


def test_a_branch_that_begins_as_zero_is_not_dead():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.norm(self.inner(x)))

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Block() for _ in range(8)), nn.Linear(WIDTH, 10))
    assert flight(model).verdict == "fine"


def test_the_growth_per_layer_is_that_of_the_weights():
    report = flight(mlp(nn.Identity, 1.3))
    assert report.growth_forward == pytest.approx(1.3, rel=0.05)
    assert report.growth_backward == pytest.approx(1.3, rel=0.1)
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name["6"].growth == pytest.approx(1.3, rel=0.2)


def test_figures_of_a_layer_are_those_of_torch():
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 10))
    report = flight(model)
    hidden = model[1](model[0](INPUTS))
    nn.functional.cross_entropy(model[2](hidden), TARGETS).backward()
    layer = report.layers[1]
    assert layer.mean == pytest.approx(hidden.mean().item(), rel=1e-5)
    assert layer.std == pytest.approx(hidden.std(correction=0).item(), rel=1e-5)
    own = torch.cat([p.grad.flatten() for p in model[0].parameters() if p.grad is not None])
    assert report.layers[0].grad_norm == pytest.approx(own.norm().item(), rel=1e-5)


def test_the_model_is_left_exactly_as_it_was():
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, 10)
    )
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    flight(model)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model[0].weight.grad == 7.0).all()
    assert model[3].weight.grad is None
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_no_random_number_generator_is_moved_by_what_the_loss_draws() -> None:
    def loss(model: nn.Module, _: int = 0) -> Tensor:
        return model(INPUTS).square().mean() * (1 + random.random() + np.random.rand() + torch.rand(()))

    model, before = nn.Linear(WIDTH, 10), rng.capture()
    run_preflight(model, loss)
    assert rng.equal(rng.capture(), before)
    learning_rate_range(model, loss, lambda twin: torch.optim.SGD(twin.parameters(), lr=1.0), steps=3)
    assert rng.equal(rng.capture(), before)


def test_the_report_is_strict_json_even_when_nothing_is_finite():
    document = flight(nn.Sequential(nn.Linear(WIDTH, 10), Logarithm())).to_dict()
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["verdict"] == "nan"
    assert document["loss"] is None


def test_the_learning_rate_range_finds_where_the_loss_falls_and_where_it_blows_up():
    model = mlp(nn.ReLU, 2**0.5, depth=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    seen = learning_rate_range(
        model,
        lambda twin, _: nn.functional.cross_entropy(twin(INPUTS), TARGETS),
        lambda twin: torch.optim.SGD(twin.parameters(), lr=0.1),
        highest=1e3,
        steps=60,
    )
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert seen.suggested is not None
    assert seen.largest is not None
    assert 1e-3 < seen.suggested < seen.largest < 1e3
    with pytest.raises(ValueError, match="needs 2 steps"):
        learning_rate_range(
            model, lambda m, _: m(INPUTS).sum(), lambda m: torch.optim.SGD(m.parameters()), steps=1
        )
