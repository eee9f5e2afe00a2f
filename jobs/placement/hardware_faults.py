"""Hardware faults, counted by node: after some of them the job moves to other nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray

from jobs.checkpoints.ranks import Ranks
from jobs.placement.plan import plan
from jobs.placement.preemption import draining_nodes
from jobs.spec.sections import ScaleSpec

FAULTY, PREEMPTED = "had too many hardware faults", "is being preempted"
"""Reasons to leave a node."""


class HardwareFaults:
    """Batches that gave another result when they were computed again, by the node of the faulty rank.

    Every rank has the same counts. They are part of the checkpoint, so that a restart does not forget a node
    that is going bad.

    Args:
        nodes: node id of every rank.
        limit: faults after which the job leaves a node; None: never.
    """

    def __init__(self, nodes: Sequence[str], limit: int | None) -> None:
        self._nodes, self._limit = list(nodes), limit
        self._counts: dict[str, int] = {}
        self._kept: set[str] = set()
        self.nodes_to_leave: list[str] = []
        """The nodes because of which this training ends here and continues elsewhere."""
        self.reason = FAULTY
        """Why, for messages."""

    def add(self, ranks: Iterable[int]) -> None:
        """Counts the faulty ranks of one step; an unknown one (-1) counts for no node."""
        for node in {self._nodes[rank] for rank in ranks if 0 <= rank < len(self._nodes)}:
            self._counts[node] = self._counts.get(node, 0) + 1

    @property
    def bad(self) -> list[str]:
        """The nodes in use that have reached the limit."""
        if self._limit is None:
            return []
        used = sorted(set(self._nodes) - self._kept)
        return [node for node in used if self._counts.get(node, 0) >= self._limit]

    def leave(self, nodes: Iterable[str], reason: str) -> None:
        """The job continues without these nodes."""
        self.nodes_to_leave, self.reason = list(nodes), reason

    def keep(self, nodes: Iterable[str]) -> None:
        """No other node has room: these stay in use."""
        self._kept.update(nodes)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self._counts = {str(node): int(count) for node, count in state["counts"].items()}


def display_names(nodes: Iterable[str]) -> str:
    """Node ids, shortened for messages."""
    return ", ".join(f"node {node[:8]}" for node in nodes)


def fits_elsewhere(scale: ScaleSpec, avoid: Sequence[str], *, use_gpu: bool) -> bool:
    """Whether the job fits on the cluster's other nodes. Collective: rank 0 asks Ray, all get its answer."""
    ranks = Ranks(scale.timeout_s)
    fits = ranks.rank == 0 and plan(scale, ray.nodes(), avoid, use_gpu=use_gpu) is not None
    # All-gather; every rank gets here, since all count the same faults, and waits for rank 0's answer.
    return bool(ranks.from_first(fits))


def preempted_nodes(scale: ScaleSpec, asked: bool, *, use_gpu: bool) -> list[str]:
    """The preempted nodes, if they are the only reason why the job stops and it fits on the others.

    Args:
        scale: of the job.
        asked: whether this rank knows of a request to stop. Every rank must call this.
        use_gpu: whether each worker has a GPU.
    """
    ranks = Ranks(scale.timeout_s)
    # All-gather; every rank gets here after the same last step: a stop that one rank knows of stops the job.
    if any(ranks.gather(asked)):
        return []
    leaving = sorted(draining_nodes()) if ranks.rank == 0 else []
    fits = leaving and plan(scale, ray.nodes(), leaving, use_gpu=use_gpu) is not None
    # All-gather; every rank gets here, since the answers above were the same, and waits for rank 0's answer.
    return list(ranks.from_first(leaving if fits else []))
