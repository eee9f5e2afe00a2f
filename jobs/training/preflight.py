"""The pre-flight of a job: one batch of its data through its model, before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from guard.preflight import PreflightReport, run_preflight
from guard.preflight.run import generators_kept
from guard.rows import strict
from jobs.errors import JobError
from jobs.run_dir.jsonl import write_json_atomic
from jobs.training.data_view import DataView, look_at
from jobs.training.together import raise_together
from jobs.workloads.load import make_cursor
from jobs.workloads.losses import loss_of

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
    spec: JobSpec,
    workload: Workload,
    model: nn.Module,
    folder: RunDir,
    progress: Progress,
    *,
    needed: bool = True,
    device: torch.device | None = None,
) -> None:
    """Runs the pre-flight on rank 0, reports the verdict, and writes it to ``preflight.json``. Collective.

    Args:
        needed: whether rank 0 runs it; what the other ranks pass has no effect.
        device: of the collectives; default: of the model.

    Raises:
        JobError: on all ranks, when the verdict is bad and the spec has ``preflight: strict``.
    """
    if spec.preflight == "off":
        return
    distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    device = device or next(model.parameters()).device
    stop = torch.zeros(1, device=device)
    line, failure = "the pre-flight of rank 0 found the network unfit", None
    if needed and (not distributed or dist.get_rank() == 0):
        try:
            fine, line = _checked(spec, workload, model, folder, progress, device)
            stop.fill_(float(spec.preflight == "strict" and not fine))
        except Exception as error:  # noqa: BLE001 - the workload's code raises anything, and the others wait
            failure = error
    raise_together(failure, dist.get_world_size() if distributed else 1)
    if distributed:
        # Broadcast of rank 0's decision; every rank gets here before its first step, and waits for rank 0.
        dist.broadcast(stop, src=0)
    if stop.item():
        raise JobError(f"{line}; set preflight: warn to train anyway")


def _checked(
    spec: JobSpec,
    workload: Workload,
    model: nn.Module,
    folder: RunDir,
    progress: Progress,
    device: torch.device,
) -> tuple[bool, str]:
    """Whether all is well, and the verdict in one line."""
    with generators_kept([device.index or 0] if device.type == "cuda" else ()):
        batch = first_batch(spec, workload, device)
        report, view = preflight(spec, workload, model, batch), look_at(workload, batch)
    fine, line = report.fine and not view.problems, verdict_line(report, view)
    progress.event("info" if fine else "warning", line)
    try:
        write_json_atomic(folder.path / FILE, {**report.to_dict(), "data": strict(view.to_dict())})
    except OSError as error:
        progress.event("warning", f"cannot write {FILE}: {error.strerror}; training continues")
    return fine, line


def verdict_line(report: PreflightReport, view: DataView) -> str:
    """The verdict in one line: nothing is fine where the data cannot be right."""
    if not view.problems:
        return report.line()
    wrong = f"pre-flight: the data cannot be right: {'; '.join(view.problems)}"
    return wrong if report.fine else f"{wrong}; {report.line()}"


def first_batch(spec: JobSpec, workload: Workload, device: torch.device) -> Any:
    """The first samples that the job will train on: as many as fit into memory, and as add something."""
    at_once = spec.data.batch_size // (spec.scale.workers * spec.train.micro_batches)  # fits into memory
    tokens: int = getattr(workload, "tokens_per_sample", None) or 1
    most = min(_MOST_SAMPLES, max(_FEWEST_SAMPLES, at_once), max(1, _MOST_TOKENS // tokens))
    ids = make_cursor(workload, spec).next_batch().ids[:most]
    return workload.train_batch(ids, 0, device)


def preflight(spec: JobSpec, workload: Workload, model: nn.Module, batch: Any) -> PreflightReport:
    """The pre-flight on a batch; the model is unchanged."""
    return run_preflight(model, lambda bare: loss_of(workload, bare, batch), precision=spec.train.precision)
