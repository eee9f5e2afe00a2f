"""How many workers Ray Train starts: all, or as many as fit on the nodes that can be used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import ray
from ray.train import ScalingConfig

from jobs.placement.preemption import draining_nodes
from jobs.ray_internals.train import (
    CountWorkers,
    CustomElasticScalingPolicy,
    FixedScalingPolicy,
    LocalScalingPolicy,
    ScalingPolicy,
)


def scaling_policy(config: ScalingConfig, avoid: Collection[str], *, embedded: bool) -> ScalingPolicy:
    """The policy that chooses the number of workers.

    Args:
        config: of the training.
        avoid: ids of nodes that must not be used.
        embedded: whether the cluster was started by this process.
    """
    if config.elasticity_enabled:
        return CustomElasticScalingPolicy(config, partial(workers_now, frozenset(avoid)))
    return LocalScalingPolicy(config) if embedded else FixedScalingPolicy(config)


def workers_now(avoid: frozenset[str], reserved: Mapping[str, Any], running: int, count: CountWorkers) -> int:
    """``allowed_workers`` for the cluster's nodes as they are now, without those to avoid.

    Ray Train's own policy would count the room of all nodes, and wait forever for what it cannot have.
    Preempted nodes get no new workers but keep those that they have: the job saves its state and moves,
    while Ray would end them at once.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    usable = {node["NodeID"]: node["Resources"] for node in alive if node["NodeID"] not in avoid}
    return allowed_workers(reserved, usable, draining_nodes(), running, count)


def allowed_workers(
    reserved: Mapping[str, Any],
    usable: Mapping[str, Any],
    preempted: Collection[str],
    running: int,
    count: CountWorkers,
) -> int:
    """The number of workers that may run.

    Args:
        reserved: what Ray has reserved for the job, by node id.
        usable: what the nodes that may be used have, by node id.
        preempted: ids of nodes that are being preempted.
        running: workers that run now.
        count: how many workers fit on given resources.
    """
    staying = {node: has for node, has in usable.items() if node not in preempted}
    fit_reserved, fit_usable, fit_staying = count(reserved), count(usable), count(staying)
    may_start = min(fit_reserved, fit_staying)  # a new worker needs a reservation, and a node that stays
    may_keep = min(fit_reserved, fit_usable, running)  # a preempted node keeps the workers that it has
    return max(may_start, may_keep)
