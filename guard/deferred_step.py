"""A step decided on the device: the host launches it, and reads one step later what happened.

Norms, finite test, thresholds and the clip coefficient stay on the device and enter the fused optimizer as
``grad_scale`` and ``found_inf``. What the host knows when it launches a step, it uploads as limits; what the
step did comes back in pinned memory, while the host is already in the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.act.fused import FusedStep
from guard.agree.agreement import JUMP, LOSS
from guard.clip.base import EPSILON, coefficient
from guard.decide.decider import StepLimits
from guard.observe.observer import Observer
from guard.step import StepParts, StepPipeline, pending
from guard.types import Evidence, Movement, StepOutcome, StepReport


@dataclass(slots=True)
class Launched:
    """One step under way."""

    limits: StepLimits
    owners: list[int]
    shape: torch.Size
    host: Tensor
    arrived: torch.cuda.Event | None
    moved: Movement | None
    learning_rate: float
    samples: list[int]

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
        """Waits until it is done: rows of all ranks, squared norms of all pieces, whether it was refused."""
        if self.arrived is not None:
            self.arrived.synchronize()
        values = self.host.numpy()
        rows = math.prod(self.shape)
        return values[1 : rows + 1].reshape(self.shape), values[rows + 1 :], bool(values[0])


class DeviceStep:
    """Decides a step on the device that the gradients are on.

    Args:
        observer: measures the gradients.
        fused: the optimizer's side.
        device: where the gradients are.
    """

    def __init__(self, observer: Observer, fused: FusedStep, device: torch.device) -> None:
        self._observer = observer
        self._fused = fused
        self._device = device

    @torch.no_grad()
    def decide(self, rows: Tensor, limits: StepLimits) -> tuple[Tensor, Tensor, list[int]]:
        """Sets scale and skip flag for the optimizer's next step.

        Args:
            rows: those of all ranks, [micro-batches, ranks, columns], on the device.
            limits: what the host knew before.

        Returns:
            The skip flag (0-dim float32, exactly 0 or 1), the squared norms of the pieces and their owners.
        """
        pieces, owners = self._observer.measure()
        pieces = pieces.to(self._device)
        bounds = self._upload([limits.loss, limits.grad_norm, limits.clip])
        norm = pieces.sum().sqrt()
        loss = rows[:, :, LOSS].double().mean()
        jump = rows[-1, :, JUMP].double().sum()
        fine = (loss <= bounds[0]) & (norm <= bounds[1]) & torch.isfinite(norm + loss + jump)
        skip = (~fine).float()
        scale = ((norm + EPSILON) / bounds[2]).clamp(min=1.0).float()
        self._fused.on_device(scale if math.isfinite(limits.clip) else None, skip)
        return skip, pieces, owners

    @torch.no_grad()
    def send_home(self, skip: Tensor, rows: Tensor, pieces: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Starts the copy of what happened to the host, float64; the event says when it is there."""
        values = torch.cat([skip.double().view(1), rows.double().flatten(), pieces])
        if self._device.type == "cpu":
            return values, None
        host = torch.empty(values.shape, dtype=torch.float64, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return host, arrived

    def _upload(self, numbers: list[float]) -> Tensor:
        if self._device.type == "cpu":
            return torch.tensor(numbers, dtype=torch.float64)
        pinned = torch.tensor(numbers, dtype=torch.float64, pin_memory=True)
        return pinned.to(self._device, non_blocking=True)


class DeferredStepPipeline(StepPipeline):
    """Launches each attempt without waiting for it, and reports it one attempt later.

    An attempt is decided at once where it cannot be left to the device: before there is a history to take
    limits from, right after an attempt that was not applied, and while a recovery runs. It is reported one
    attempt later all the same.
    """

    def __init__(self, parts: StepParts) -> None:
        super().__init__(parts)
        self._on_device = DeviceStep(parts.observer, parts.actor.fused, parts.device)
        self._late: Launched | StepReport | None = None

    @property
    def standing_steps(self) -> int:
        """A step under way counts as applied."""
        return self.step + isinstance(self._late, Launched)

    @property
    def under_way(self) -> bool:
        """Whether a step has been launched that nobody has looked at."""
        return isinstance(self._late, Launched)

    def run(self, again: Callable[[], None] | None, *, settle: bool) -> StepReport:  # noqa: ARG002
        """Reports the attempt before, and launches this one. ``again`` is not used."""
        started = time.perf_counter()
        rows = self._agreement.receive_rows()
        report = self.flush()
        if report is not None and report.action == "rolled_back" and self._stale:
            self._actor.undo_forward()  # this batch was computed with weights that are gone
            return report
        if (report is None or report.applied) and self._may_launch():
            self._late = self._launch(rows)
        else:
            agreed = self._agreement.read(rows.cpu().numpy().astype(np.float64))
            self._late = self._exact(started, agreed, None, settle=settle)
        return report or pending(self.step, self.attempt, self._actor.learning_rate)

    def flush(self) -> StepReport | None:
        """Waits for the step under way and reports it. Raises as ``run`` does."""
        late, self._late = self._late, None
        self._stale = isinstance(late, Launched)
        return self._resolve(late, time.perf_counter()) if isinstance(late, Launched) else late

    def _may_launch(self) -> bool:
        return self._judge.detector.ready and not self._actor.recovery.active

    def _launch(self, rows: Tensor) -> Launched:
        limits = self._judge.limits()
        moved = self._actor.moved(self.step)
        learning_rate = self._actor.learning_rate
        skip, pieces, owners = self._on_device.decide(rows, limits)
        self._actor.launch(skip)
        self.attempt += 1
        self._actor.take_snapshot_when_due(self.step + 1)
        if self._parts.local is not None:
            total = self._parts.local.total()
            self.last_local = math.nan if total is None else total
        host, arrived = self._on_device.send_home(skip, rows, pieces)
        return Launched(limits, owners, rows.shape, host, arrived, moved, learning_rate, self._ids())

    def _resolve(self, late: Launched, started: float) -> StepReport:
        """Judges a launched step by what it did."""
        rows, squares, refused = late.read()
        agreed, seen = self._agreement.read(rows), self._observer.read(squares, late.owners)
        evidence = self._evidence(agreed, seen, late.moved)
        evidence = replace(evidence, learning_rate=late.learning_rate)
        if refused and evidence.decision.rung == "apply":
            evidence = self._judge.refused(evidence)
        local_norms = self._nothing()
        if evidence.verdict.kind != "ok" and self._parts.local is not None:
            local_norms = self._gather(float(self.last_local))
        distances = self._distances(evidence)
        outcome = self._act_late(evidence, late, refused=refused)
        samples = [] if evidence.verdict.kind == "ok" else late.samples
        incident = self._record(evidence, outcome, local_norms, samples, distances)
        self._unsettled = None
        if outcome.action != "rolled_back":
            self._actor.judge_snapshots(self.step, clean=evidence.clean and not refused)
        return self._report(started, evidence, outcome, incident)

    def _act_late(self, evidence: Evidence, late: Launched, *, refused: bool) -> StepOutcome:
        step = self.step if refused else self.step + 1
        if evidence.decision.rung == "rollback":
            return self._actor.roll_back(step)
        if evidence.decision.rung == "halt":
            return self._actor.halt(step)
        if refused:
            return StepOutcome("skipped", step)
        self._actor.advance()
        factor = coefficient(evidence.grad_norm, late.limits.clip)
        return StepOutcome("clipped" if factor < 1.0 else "applied", step, clip_coef=factor)
