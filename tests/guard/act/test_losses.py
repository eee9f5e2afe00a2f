"""Each loss of torch is taken as it is, one or several a step, without an error or a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guard import GradientGuard

CLASSES = torch.tensor([0, 2, 1, 0])
SHARES = torch.full((4, 3), 1 / 3)

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(),
    "sum": lambda x: x.sum(),
    "classes": lambda x: F.cross_entropy(x, CLASSES),
    "soft labels": lambda x: F.cross_entropy(x, SHARES),
    "soft labels, smoothed": lambda x: F.cross_entropy(x, SHARES, label_smoothing=0.1),
    "soft labels, weighted classes": lambda x: F.cross_entropy(x, SHARES, weight=torch.ones(3)),
    "summed": lambda x: F.cross_entropy(x, CLASSES, reduction="sum") / 4,
    "divergence": lambda x: F.kl_div(x.log_softmax(1), SHARES, reduction="batchmean"),
    "binary": lambda x: F.binary_cross_entropy_with_logits(x, SHARES),
    "gaussian": lambda x: F.gaussian_nll_loss(x, SHARES, torch.ones(4, 3)),
    "poisson": lambda x: F.poisson_nll_loss(x, SHARES),
    "squares": lambda x: F.mse_loss(x, SHARES),
    "huber": lambda x: F.huber_loss(x, SHARES),
    "margin": lambda x: F.multi_margin_loss(x, CLASSES),
    "triplet": lambda x: F.triplet_margin_loss(x, x.roll(1, 0), -x),
    "cosine": lambda x: F.cosine_embedding_loss(x, SHARES, torch.ones(4)),
    "alignment": lambda x: F.ctc_loss(
        x.log_softmax(1)[:, None], torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2])
    ),
    "one element": lambda x: x.mean().reshape(1),
    "whole numbers": lambda x: x.mean() * torch.tensor(2) / torch.tensor(3),
    "float64": lambda x: x.double().mean(),
}


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_torch_is_taken_as_it_is(name: str, micro_batches: int) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 3), torch.randn(4, 5)
    plain = torch.autograd.grad(LOSSES[name](model(inputs)).sum(), [*model.parameters()])
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            model.zero_grad()
            for _ in range(micro_batches):
                guard.backward(LOSSES[name](model(inputs)), weight=1 / micro_batches)
            assert guard.step().applied
    for parameter, gradient in zip(model.parameters(), plain, strict=True):
        assert torch.allclose(parameter.grad, gradient)
