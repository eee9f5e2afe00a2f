"""One training job: its spec, data, models, the loop on Ray Train, checkpoints, the client.

``train``: ``python -m jobs.train SPEC``, the entrypoint
``spec``: the spec and its checks
``run_dir``: a job's folder and its files
``data``: what is trained on
``models``: networks
``init``: first weights
``workloads``: the task that joins them
``training``: the loop of one rank
``checkpoints``: save, verify, restore
``placement``: which nodes the workers use
``cluster``: Ray: session, driver, trainer
``observability``: progress, hub, console
``report``: the HTML report
``client``: ``JobClient``
``errors``: what a job raises
``torchvision_compat``: imports torchvision beside a CPU build of torch
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from jobs.client import AsyncJobClient, Job, JobClient
    from jobs.errors import JobError
    from jobs.spec.errors import SpecError
    from jobs.spec.job_spec import JobSpec

__all__ = ["AsyncJobClient", "Job", "JobClient", "JobError", "JobSpec", "SpecError"]

__getattr__ = lazy(
    __name__,
    {
        "AsyncJobClient": "client",
        "Job": "client",
        "JobClient": "client",
        "JobError": "errors",
        "JobSpec": "spec.job_spec",
        "SpecError": "spec.errors",
    },
)
