"""On which nodes the workers run: how many fit, and on which nodes none must run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.spec.sections import ScaleSpec

NODE_ID_LABEL = "ray.io/node-id"


@dataclass(frozen=True, slots=True)
class Placement:
    """The workers to request from Ray Train.

    Attributes:
        workers: their number, or the least and the most.
        avoid: ids of nodes on which none must run.
    """

    workers: int | tuple[int, int]
    avoid: tuple[str, ...] = ()

    @property
    def label_selector(self) -> dict[str, str] | None:
        """``avoid`` in Ray's syntax."""
        return {NODE_ID_LABEL: f"!in({','.join(self.avoid)})"} if self.avoid else None


def worker_resources(scale: ScaleSpec, *, use_gpu: bool) -> dict[str, float]:
    """What one worker reserves."""
    return {"CPU": scale.cpus_per_worker, **({"GPU": 1.0} if use_gpu else {})}


def plan(
    scale: ScaleSpec, nodes: Sequence[Mapping[str, Any]], avoid: Collection[str], *, use_gpu: bool
) -> Placement | None:
    """The placement without some nodes; None where the job does not fit on the others.

    Args:
        scale: of the job.
        nodes: as ``ray.nodes()`` returns them.
        avoid: ids of the nodes to avoid.
        use_gpu: whether each worker has a GPU.
    """
    if not avoid:
        return Placement(_sizes(scale))
    needed = worker_resources(scale, use_gpu=use_gpu)
    room = sum(_fit(n["Resources"], needed) for n in nodes if n["Alive"] and n["NodeID"] not in avoid)
    if room < scale.fewest_workers:
        return None
    return Placement(_sizes(scale), tuple(sorted(avoid)))


def _sizes(scale: ScaleSpec) -> int | tuple[int, int]:
    return scale.workers if scale.min_workers is None else (scale.min_workers, scale.workers)


def _fit(have: Mapping[str, float], needed: Mapping[str, float]) -> int:
    return min(math.floor(have.get(name, 0.0) / amount + 1e-9) for name, amount in needed.items())
