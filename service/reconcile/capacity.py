"""Which waiting jobs can start, and what the others wait for."""

from collections.abc import Sequence

from jobs.cluster.session import shortage
from jobs.spec.job_spec import JobSpec
from service.reconcile.ray_api import Capacity
from service.store import JobRow

RESOURCES = ("GPU", "CPU")


def resources_of(spec: JobSpec, capacity: Capacity | None = None) -> dict[str, float]:
    """CPUs and GPUs of all workers; device ``auto`` means GPUs where the cluster has enough of them."""
    scale = spec.scale
    enough = capacity is not None and capacity.total("GPU") >= scale.workers
    gpus = scale.workers if scale.device == "gpu" or (scale.device == "auto" and enough) else 0
    return {"GPU": float(gpus), "CPU": scale.workers * scale.cpus_per_worker}


def free(capacity: Capacity, active: Sequence[JobRow]) -> dict[str, float]:
    """CPUs and GPUs left for more jobs. A job that has just started does not hold its workers yet: what it
    asked for counts as used."""
    promised = {"GPU": sum(job.gpus for job in active), "CPU": sum(job.cpus for job in active)}
    return {
        name: max(0.0, capacity.total(name) - max(capacity.used.get(name, 0.0), promised[name]))
        for name in RESOURCES
    }


def waits_for(needed: dict[str, float], left: dict[str, float]) -> str | None:
    """``waiting for 2 GPUs, 1 free``; None if everything is free."""
    for name in RESOURCES:
        if needed[name] > left[name] + 1e-9:
            plural = "" if needed[name] == 1 else "s"
            return f"waiting for {needed[name]:g} {name}{plural}, {left[name]:g} free"
    return None


def never_fits(needed: dict[str, float], workers: int, nodes: Sequence[dict[str, float]]) -> str | None:
    """Why the cluster in its present size can never run this, and what to set instead."""
    return shortage({name: amount for name, amount in needed.items() if amount}, workers, nodes)
