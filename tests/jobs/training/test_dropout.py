"""Dropout and stochastic depth are set on a finished model, without a change of its parameters' names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jobs.models.vision import build_model
from jobs.spec.regularize import RegularizeSpec
from jobs.spec.sections import ModelSpec
from jobs.training.dropout import set_randomness
from jobs.workloads.errors import WorkloadError

IMAGES = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def model(name: str) -> nn.Module:
    return build_model(ModelSpec(name=name), channels=1, classes=10, image_size=32, seed=0)


def test_existing_dropout_layers_are_set():
    network = model("mobilenet_v2")
    set_randomness(network, RegularizeSpec(dropout=0.7))
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.7]


@pytest.mark.parametrize("spec", [RegularizeSpec(dropout=0.5), RegularizeSpec(stochastic_depth=0.5)])
def test_a_resnet_gets_randomness_in_training_only_and_keeps_its_names(spec: RegularizeSpec):
    network, plain = model("resnet18"), model("resnet18")
    set_randomness(network, spec)
    assert list(network.state_dict()) == list(plain.state_dict())
    network.eval()
    plain.eval()
    assert torch.equal(network(IMAGES), plain(IMAGES))
    network.train()
    torch.manual_seed(0)
    assert not torch.equal(network(IMAGES), network(IMAGES))


def test_stochastic_depth_rises_with_the_depth_and_keeps_the_mean():
    class Block(nn.Module):
        residual_ends = ("inner",)

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(1, 1, bias=False)
            nn.init.ones_(self.inner.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    network = nn.Sequential(Block(), Block(), Block())
    set_randomness(network, RegularizeSpec(stochastic_depth=0.6))
    torch.manual_seed(0)
    ones = torch.ones(20_000, 1)
    for block, kept in zip(network, (1.0, 0.7, 0.4), strict=True):
        out = block(ones)
        assert (out != 0).float().mean().item() == pytest.approx(kept, abs=0.02)
        assert out.mean().item() == pytest.approx(1.0, abs=0.05)


def test_a_model_without_a_place_for_it_is_named():
    with pytest.raises(WorkloadError, match="no residual branch that is known"):
        set_randomness(nn.Sequential(nn.Linear(2, 2)), RegularizeSpec(stochastic_depth=0.1))
    with pytest.raises(WorkloadError, match="no dropout and no linear layer"):
        set_randomness(nn.Sequential(nn.Conv2d(1, 1, 1)), RegularizeSpec(dropout=0.1))
