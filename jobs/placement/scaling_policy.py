"""How many workers Ray Train starts: all, or as many as the nodes that can be used have room for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState

from jobs.placement.preemption import draining_nodes


def scaling_policy(config: ScalingConfig, avoid: Collection[str], *, embedded: bool) -> ScalingPolicy:
    """What decides on the number of workers.

    Args:
        config: of the training.
        avoid: ids of nodes that are not to be used.
        embedded: whether the cluster is ours alone.
    """
    if config.elasticity_enabled:
        return AvoidingScalingPolicy(config, avoid)
    return LocalScalingPolicy(config) if embedded else FixedScalingPolicy(config)


class LocalScalingPolicy(FixedScalingPolicy):
    """Reserves nothing with Ray's coordinator of clusters that grow, which would have to be started first."""

    def _send_resource_request(self) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


class AvoidingScalingPolicy(ElasticScalingPolicy):
    """Ray Train's own policy would count the room of all nodes, and wait for ever for what it cannot have.

    Nodes that are being taken away take no new workers. Those that they have are left alone: the job saves
    its state and goes by itself, while Ray would end them at once.

    Args:
        scaling_config: of the training.
        avoid: ids of nodes that are not to be used.
    """

    def __init__(self, scaling_config: ScalingConfig, avoid: Collection[str] = ()) -> None:
        super().__init__(scaling_config)
        self._avoid = frozenset(avoid)
        self._running = 0

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """As Ray Train's."""
        self._running = worker_group_state.num_workers
        try:
            return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        finally:
            self._running = 0

    def _count_possible_workers(self, reserved_resources: Mapping[str, Any]) -> int:
        usable = {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}
        usable = {node: has for node, has in usable.items() if node not in self._avoid}
        going = draining_nodes()
        staying = {node: has for node, has in usable.items() if node not in going}
        reserved, room, sure = map(super()._count_possible_workers, (reserved_resources, usable, staying))
        return int(max(min(reserved, sure), min(reserved, room, self._running)))
