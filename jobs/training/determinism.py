"""What a resumed run must have in common with one that was never interrupted, to the bit."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from guard.act import rng
from jobs.workloads.base import Workload

_NUMPY_SEEDS = 2**32


def seed_generators(seed: int, rank: int) -> None:
    """Seeds Python's, NumPy's and torch's generators, differently on every rank."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % _NUMPY_SEEDS)
    torch.manual_seed(seed + rank)


def settle_buckets(model: nn.Module, workload: Workload, device: torch.device) -> None:
    """Lets DDP arrange its buckets before the first step, so that every step of every run sums alike.

    DDP orders the gradients anew after its first backward pass. With three or more ranks the order decides
    in which sequence the ranks are added up, and so the last bit of the sum; with any number it decides how
    a gradient is aligned in memory, and so the last bit of its norm: the first step after a resume differs.
    Two passes over two samples settle it; what they touch is put back.
    """
    generators = rng.capture()
    buffers = [buffer.clone() for buffer in model.buffers()]
    for _ in range(2):  # the second forward pass makes the new buckets
        workload.loss(model, workload.train_batch(np.arange(min(2, workload.n_train)), 0, device)).backward()
    for parameter in model.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    rng.restore(generators)
