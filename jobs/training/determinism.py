"""What makes a resumed run equal, to the bit, to one that was never interrupted."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from guard.act import rng
from guard.observe.watched import unwrap
from jobs.workloads.base import Workload
from jobs.workloads.losses import loss_of

_NUMPY_SEEDS = 2**32


def seed_everything(seed: int, rank: int) -> None:
    """Seeds Python's, NumPy's and torch's generators, differently on every rank."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % _NUMPY_SEEDS)
    torch.manual_seed(seed + rank)


def settle_ddp_buckets(model: nn.Module, workload: Workload, device: torch.device) -> list[str]:
    """Lets DDP arrange its buckets before the first step, so that every step of every run sums alike.

    DDP reorders the gradients after its first backward pass. With three or more ranks the order determines
    in which sequence the ranks are summed, and so the last bit of the sum; with any number it determines how
    a gradient is aligned in memory, and so the last bit of its norm: the first step after a resume would
    differ. Two passes over two samples settle the order; buffers and generators are restored.

    Returns:
        The parameters that got no gradient: then the order is not settled, and DDP must be made again, with
        ``find_unused_parameters``. Every rank uses the same samples, so all have the same answer.
    """
    generators = rng.capture()
    buffers = [buffer.clone() for buffer in model.buffers()]
    # DDP's all-reduce (mean); every rank gets here before its first step, and waits for the slowest.
    unused: list[str] = []
    for _ in range(2):  # the second forward pass makes the new buckets
        batch = workload.train_batch(np.arange(min(2, workload.n_train)), 0, device)
        loss_of(workload, model, batch).backward()
        unused = [n for n, p in unwrap(model).named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            break
    for parameter in model.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    rng.restore(generators)
    return unused
