"""One training job: its spec, data, models, the loop on Ray Train, checkpoints, the client.

``train``: ``python -m jobs.train SPEC``, the entrypoint
``spec``: the spec and its checks
``run_dir``: a job's folder and its files
``data``: what is trained on
``models``: networks
``init``: first weights
``workloads``: the task that joins them
``layout``: FSDP2, HSDP and tensor parallel: how a model is divided over the workers
``training``: the loop of one rank
``checkpoints``: save, verify, restore
``placement``: which nodes the workers use
``cluster``: Ray: session, driver, trainer
``sweep``: many jobs that differ in a few fields
``notify``: notices of a job: webhook, Slack, e-mail, ntfy
``observability``: progress, hub, console
``report``: the HTML report
``client``: ``JobClient``
``ray_internals``: the private parts of Ray that are used
``errors``: what a job raises
``failures``: what an error of a training means, and what to do
``torchvision_compat``: imports torchvision beside a CPU build of torch
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a guard.py in the working directory
try:
    from guard.lazy import lazy
except ImportError:
    hidden_by = getattr(sys.modules.get("guard"), "__file__", None)
    line = f"{hidden_by} hides GradGuard's package guard: rename it, or move it to another folder"
    if sys.argv[0] == "-m":  # python -m jobs.train: a usage error, in one line
        print(line, file=sys.stderr)
        sys.exit(2)
    raise ImportError(line) from None
finally:
    del sys.path[0]

if TYPE_CHECKING:
    from jobs.client import AsyncJobClient, Job, JobClient
    from jobs.errors import JobError
    from jobs.models.exported import load_model
    from jobs.spec.errors import SpecError
    from jobs.spec.job_spec import JobSpec

__all__ = ["AsyncJobClient", "Job", "JobClient", "JobError", "JobSpec", "SpecError", "load_model"]

__getattr__ = lazy(
    __name__,
    {
        "AsyncJobClient": "client",
        "Job": "client",
        "JobClient": "client",
        "JobError": "errors",
        "JobSpec": "spec.job_spec",
        "SpecError": "spec.errors",
        "load_model": "models.exported",
    },
)
