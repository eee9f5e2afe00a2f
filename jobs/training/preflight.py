"""The pre-flight of a job: one batch of its data through its model, before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from guard.preflight import PreflightReport, run_preflight
from jobs.data.cursor import DataCursor
from jobs.errors import JobError
from jobs.run_dir.jsonl import write_json_atomic

if TYPE_CHECKING:
    from jobs.observability.progress import Progress
    from jobs.run_dir.paths import RunDir
    from jobs.spec.job_spec import JobSpec
    from jobs.workloads.base import Workload

FILE = "preflight.json"
_MOST_SAMPLES, _FEWEST_SAMPLES = 64, 8
_MOST_TOKENS = 2048
"""Of text: more add nothing, and their logits alone may fill the memory of a machine without a GPU."""


def before_first_step(
    spec: JobSpec, workload: Workload, model: nn.Module, folder: RunDir, progress: Progress
) -> None:
    """Runs the pre-flight on rank 0, reports the verdict, and writes it to ``preflight.json``.

    Raises:
        JobError: on all ranks, when the verdict is bad and the spec has ``preflight: strict``.
    """
    if spec.preflight == "off":
        return
    distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    device = next(model.parameters()).device
    stop = torch.zeros(1, device=device)
    line = "the pre-flight of rank 0 found the network unfit"
    if not distributed or dist.get_rank() == 0:
        report = preflight(spec, workload, model)
        line = report.line()
        progress.event("info" if report.fine else "warning", line)
        try:
            write_json_atomic(folder.path / FILE, report.to_dict())
        except OSError as error:
            progress.event("warning", f"cannot write {FILE}: {error.strerror}; training continues")
        stop.fill_(float(spec.preflight == "strict" and not report.fine))
    if distributed:
        # Broadcast of rank 0's decision; every rank gets here before its first step, and waits for rank 0.
        dist.broadcast(stop, src=0)
    if stop.item():
        raise JobError(f"{line}; set preflight: warn to train anyway")


def preflight(spec: JobSpec, workload: Workload, model: nn.Module) -> PreflightReport:
    """The pre-flight on the first samples that the job will train on; the model is unchanged."""
    at_once = spec.data.batch_size // (spec.scale.workers * spec.train.micro_batches)  # fits into memory
    tokens: int = getattr(workload, "tokens_per_sample", None) or 1
    most = min(_MOST_SAMPLES, max(_FEWEST_SAMPLES, at_once), max(1, _MOST_TOKENS // tokens))
    ids = DataCursor(workload.n_train, spec.data.batch_size, spec.seed).next_batch().ids[:most]
    batch = workload.train_batch(ids, 0, next(model.parameters()).device)
    return run_preflight(model, lambda bare: workload.loss(bare, batch), precision=spec.train.precision)
