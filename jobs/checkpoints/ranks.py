"""How the ranks of a checkpoint talk: over a gloo group of their own, beside the one that trains."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist


class Ranks:
    """This rank among those that train together; without torch.distributed the only one.

    Constructing it is collective. So are its methods: no rank may leave one out.

    Args:
        timeout_s: after this long, a rank that does not answer is an error.
    """

    def __init__(self, timeout_s: float = 60.0) -> None:
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        self.rank = 0 if alone else dist.get_rank()
        self.world_size = 1 if alone else dist.get_world_size()
        self.group = None if alone else dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    @property
    def alone(self) -> bool:
        """Whether there is only one rank."""
        return self.group is None

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.alone:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return self.gather(value)[0]
