"""Communication between the ranks of a checkpoint: over a gloo group separate from the one that trains."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist


class Ranks:
    """This rank among those that train together; without torch.distributed the only one.

    Constructing it is collective, and so are its methods: every rank must call them in the same order.

    Args:
        timeout_s: a rank that does not answer for this long is an error.
    """

    def __init__(self, timeout_s: float = 60.0) -> None:
        single = not dist.is_initialized() or dist.get_world_size() == 1
        self.rank = 0 if single else dist.get_rank()
        self.world_size = 1 if single else dist.get_world_size()
        # New group, or None with one rank; every rank gets here at the same place, and waits for the slowest.
        self.group = None if single else dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.group is None:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        # All-gather; every rank calls it (see the call sites), and waits for the slowest.
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return self.gather(value)[0]
