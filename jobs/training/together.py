"""What fails on one rank alone ends all of them with its cause, before the others wait for it."""

from __future__ import annotations

import torch.distributed as dist

from guard import RankLost
from jobs.failures import first_line


def raise_together(own: Exception | None, ranks: int) -> None:
    """Collective, where each rank did something that may fail.

    Raises:
        Exception: ``own``, on the rank that has one.
        RankLost: on the others; it names the rank and the cause.
    """
    causes = [None if own is None else first_line(own)] * ranks
    if ranks > 1:
        # All-gather; every rank gets here, whether it failed or not, and waits for the slowest.
        dist.all_gather_object(causes, causes[0])
    if own is not None:
        raise own
    failed = [f"rank {rank} failed: {cause}" for rank, cause in enumerate(causes) if cause is not None]
    if failed:
        raise RankLost("; ".join(failed))
