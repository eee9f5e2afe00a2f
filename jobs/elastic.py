"""How many workers an elastic job can have, when some nodes are not to be used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from jobs.drain import draining_nodes


class UsableNodes(ElasticScalingPolicy):
    """Ray Train's own policy would count the room of all nodes, and wait for ever for what it cannot have.

    Args:
        scaling_config: of the training.
        avoid: ids of nodes that are not to be used. Nodes that are being taken away count as little.
    """

    def __init__(self, scaling_config: ScalingConfig, avoid: Collection[str] = ()) -> None:
        super().__init__(scaling_config)
        self._avoid = frozenset(avoid)

    def _count_possible_workers(self, reserved_resources: Mapping[str, Any]) -> int:
        away = self._avoid | draining_nodes()
        usable = {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"] and n["NodeID"] not in away}
        reserved: int = super()._count_possible_workers(reserved_resources)
        room: int = super()._count_possible_workers(usable)
        return min(reserved, room)
