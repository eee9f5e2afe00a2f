"""Checks that all workers see the same data: files may differ between nodes, and a copy may be cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from jobs.data.errors import DataError
from jobs.errors import JobError
from jobs.spec.errors import SpecError
from jobs.training.together import raise_together
from jobs.workloads import WorkloadError, load_workload

if TYPE_CHECKING:
    from jobs.spec.job_spec import JobSpec
    from jobs.training.run import World
    from jobs.workloads.base import Workload


def load_agreed(spec: JobSpec, world: World) -> Workload:
    """The workload of the spec, whose data all ranks can read and see alike. Collective.

    Raises:
        DataError: on all ranks, when one cannot make its workload, or two have different data.
    """
    workload, problem, failure = None, None, None
    try:
        workload = load_workload(spec)
    except (DataError, WorkloadError, SpecError, JobError) as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - the user's code raises anything, and the other ranks wait
        failure = error
    raise_together(failure, world.size)
    problems = [problem] * world.size
    if world.size > 1:
        # All-gather, once at the start of a run; every rank gets here, and waits for the slowest.
        dist.all_gather_object(problems, problem)
    for rank, text in enumerate(problems):
        if text is not None:
            alone = world.size > 1 and problems.count(text) < world.size
            raise DataError(f"{world.places[rank]}: {text}" if alone else text)
    assert workload is not None
    check_same_data(workload, world.size)
    return workload


def identity(workload: Workload) -> dict[str, Any]:
    """What identifies the training data: how many samples, and what else the workload has of these.

    ``classes``: their names. ``fingerprint``: text. ``model_sizes``: what the network's size follows from.
    ``normalization``: ``mean`` and ``std`` of each channel of an image.
    """
    names = ("classes", "fingerprint", "model_sizes", "normalization")
    classes, fingerprint, sizes, normalization = (getattr(workload, name, None) for name in names)
    return {
        "samples": int(workload.n_train),
        **({} if classes is None else {"classes": [str(name) for name in classes]}),
        **({} if fingerprint is None else {"fingerprint": str(fingerprint)}),
        **({} if sizes is None else {"model": dict(sizes)}),
        **({} if normalization is None else {"normalization": dict(normalization)}),
    }


def check_same_data(workload: Workload, world_size: int) -> None:
    """Compares the size of the training set, and its fingerprint where the workload has one. Collective.

    Raises:
        DataError: on all ranks, when two of them differ.
    """
    if world_size == 1:
        return
    fingerprint = getattr(workload, "fingerprint", "")
    own = f"{workload.n_train} samples" + (f" ({fingerprint})" if fingerprint else "")
    seen = [own] * world_size
    # All-gather, once at the start of a run; every rank has made its workload, and waits for the slowest.
    dist.all_gather_object(seen, own)
    other = next((index for index, data in enumerate(seen) if data != seen[0]), None)
    if other is not None:
        raise DataError(
            f"the workers have different data: rank 0 has {seen[0]}, rank {other} has "
            f"{seen[other]}: put the same files on every node, or on storage that all of them see"
        )
