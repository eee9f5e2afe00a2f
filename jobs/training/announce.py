"""Changes on purpose that a job announces to its guard.

Within a run no setting of a spec switches anything: augmentation, mixing, label smoothing, dropout and the
sequence length are the same from the first step to the last, schedules fall without restarts, and the terms
of ``regularize`` rise and fall along lines. An evaluation changes nothing that trains. A job may continue
with another spec: its checkpoint refuses another model, optimizer, batch size, loss or data set
(``jobs.checkpoints.spec_match``), and what else moves the loss is announced here.
"""

from __future__ import annotations

from collections.abc import Collection

from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from guard import GradientGuard

MOVES_THE_LOSS = ("data", "data.root", "data.on_broken", "train.precision", "train.micro_batches")
"""Fields that may differ when a job continues, and with which the same weights have another loss or norm."""
_RATE_STEP = 1.25
"""A longer or shorter run moves its schedule; a rate that changes by less than a quarter shows in no loss."""


def announce_changes(guard: GradientGuard, schedule: LRScheduler, changed: Collection[str]) -> str | None:
    """Announces what differs from the run that wrote the checkpoint; call it once that has been loaded.

    Args:
        guard: of the run, with the state of the checkpoint.
        schedule: with the state of the checkpoint.
        changed: fields of the spec that differ, as ``train.precision``.

    Returns:
        What was announced; None where nothing moves the loss.
    """
    changes = [f"{field} changed" for field in MOVES_THE_LOSS if field in changed]
    saved, planned = schedule.get_last_lr()[0], _planned(schedule)
    if max(saved, planned) > _RATE_STEP * min(saved, planned):
        changes.append(f"the learning rate goes from {saved:.3g} to {planned:.3g}")
    if not changes:
        return None
    reason = "continued with another spec: " + ", ".join(changes)
    guard.expect_change(reason)
    return reason


def _planned(schedule: LRScheduler) -> float:
    """The rate that the schedule has at its present step; one by import path continues its saved one."""
    if not isinstance(schedule, LambdaLR):
        return float(schedule.get_last_lr()[0])
    return float(schedule.base_lrs[0] * schedule.lr_lambdas[0](schedule.last_epoch))
