"""Checks that all workers see the same data: files may differ between nodes, and a copy may be cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist

from jobs.data.errors import DataError

if TYPE_CHECKING:
    from jobs.workloads.base import Workload


def check_same_data(workload: Workload, world_size: int) -> None:
    """Compares the size of the training set, and its fingerprint where the workload has one. Collective.

    Raises:
        DataError: on all ranks, when two of them differ.
    """
    if world_size == 1:
        return
    fingerprint = getattr(workload, "fingerprint", "")
    own = f"{workload.n_train} samples" + (f" ({fingerprint})" if fingerprint else "")
    seen = [own] * world_size
    # All-gather, once at the start of a run; every rank has made its workload, and waits for the slowest.
    dist.all_gather_object(seen, own)
    other = next((index for index, data in enumerate(seen) if data != seen[0]), None)
    if other is not None:
        raise DataError(
            f"the workers have different data: rank 0 has {seen[0]}, rank {other} has "
            f"{seen[other]}: put the same files on every node, or on storage that all of them see"
        )
