"""Hardware faults, counted by node: after some of them the job leaves the node for another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray

from jobs.checkpoints.ranks import Ranks
from jobs.placement.plan import plan
from jobs.placement.preemption import draining_nodes
from jobs.spec.sections import ScaleSpec

ERRED, TAKEN_AWAY = "had too many hardware faults", "is being taken away"


class HardwareFaults:
    """Batches that gave another result when they were computed again, by the node of the rank that erred.

    Every rank holds the same counts, since it is told the same; they are part of the checkpoint, so that a
    restart does not forget a node that is going bad.

    Args:
        nodes: id of the node of every rank.
        limit: faults after which a node is to be left; None: never.
    """

    def __init__(self, nodes: Sequence[str], limit: int | None) -> None:
        self._nodes, self._limit = list(nodes), limit
        self._counts: dict[str, int] = {}
        self._kept: set[str] = set()
        self.leaving: list[str] = []
        """The nodes for whose sake this training ends here and goes on elsewhere."""
        self.why = ERRED
        """What people are told of them."""

    def note(self, ranks: Iterable[int]) -> None:
        """Ranks that erred in one step; one that cannot be told (-1) accuses no node."""
        for node in {self._nodes[rank] for rank in ranks if 0 <= rank < len(self._nodes)}:
            self._counts[node] = self._counts.get(node, 0) + 1

    @property
    def bad(self) -> list[str]:
        """The nodes in use that are to be left."""
        if self._limit is None:
            return []
        used = sorted(set(self._nodes) - self._kept)
        return [node for node in used if self._counts.get(node, 0) >= self._limit]

    def leave(self, nodes: Iterable[str], why: str) -> None:
        """The job goes on without these, for this reason."""
        self.leaving, self.why = list(nodes), why

    def keep(self, nodes: Iterable[str]) -> None:
        """There is no other place: these nodes are used on."""
        self._kept.update(nodes)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self._counts = {str(node): int(count) for node, count in state["counts"].items()}


def named(nodes: Iterable[str]) -> str:
    """Nodes as people are told them."""
    return ", ".join(f"node {node[:8]}" for node in nodes)


def room_elsewhere(scale: ScaleSpec, avoid: Sequence[str], *, use_gpu: bool) -> bool:
    """Whether the job fits on the cluster's other nodes; rank 0 looks, and every rank comes here."""
    ranks = Ranks(scale.timeout_s)
    found = None
    if ranks.rank == 0:
        found = plan(scale, ray.nodes(), avoid, use_gpu=use_gpu) is not None
    return bool(ranks.from_first(found))


def given_up_nodes(scale: ScaleSpec, asked: bool, *, use_gpu: bool) -> list[str]:
    """The nodes for whose sake alone a job stops that fits on the cluster's others; none if it is to stop.

    Args:
        scale: of the job.
        asked: whether this rank knows that somebody asked the job to stop; every rank comes here.
        use_gpu: whether each worker has a GPU.
    """
    ranks = Ranks(scale.timeout_s)
    if any(ranks.gather(asked)):
        return []
    nodes: list[str] = []
    if ranks.rank == 0:
        nodes = sorted(draining_nodes())
        nodes = nodes if nodes and plan(scale, ray.nodes(), nodes, use_gpu=use_gpu) is not None else []
    return list(ranks.from_first(nodes))
