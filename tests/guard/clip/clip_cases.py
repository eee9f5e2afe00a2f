"""Gradients and helpers that the tests of clipping share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guard import ClipConfig
from guard.clip.base import Clipper
from guard.clip.make import make_clipper
from guard.observe.observer import Observer
from guard.types import Observation

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9, torch.bfloat16: 2e-2}


def random_shapes(seed: int) -> list[tuple[int, ...]]:
    pick = random.Random(seed)
    return [tuple(pick.randint(1, 9) for _ in range(pick.randint(0, 4))) for _ in range(pick.randint(2, 12))]


def parameters_of(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[nn.Parameter]:
    """Random weights with random gradients, whose scales differ from tensor to tensor."""
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for i, shape in enumerate(shapes):
        parameter = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        parameter.grad = torch.randn(shape, generator=generator).to(dtype) * 10.0 ** (i % 3 - 1)
        parameters.append(parameter)
    return parameters


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad.clone() for p in parameters if p.grad is not None]


def observed(parameters: Sequence[Tensor]) -> Observation:
    return Observer({str(i): p for i, p in enumerate(parameters)}).observe()


def clip(
    parameters: Sequence[Tensor], config: dict[str, Any], optimizer: torch.optim.Optimizer | None = None
) -> float | None:
    """Clips once; the ratio of norms."""
    clipper = make_clipper(ClipConfig.model_validate(config), parameters, optimizer)
    return clipper.clip_(clipper.plan(observed(parameters)))


def norms(*layers: float) -> Observation:
    """An observation of tensors with these norms."""
    values = np.array(layers, dtype=np.float64)
    return Observation(float(np.sqrt((values * values).sum())), values)


def clipper_of(count: int = 1, **config: Any) -> Clipper:
    """A clipper of ``count`` scalars."""
    return make_clipper(ClipConfig(**config), [nn.Parameter(torch.zeros(())) for _ in range(count)])


def limits(clipper: Clipper, values: Sequence[float], **step: Any) -> list[float | None]:
    """The limit of each step of a run with these global norms."""
    return [clipper.plan(norms(value), **step).limit for value in values]
