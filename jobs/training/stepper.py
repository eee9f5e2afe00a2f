"""One optimizer step: micro-batches, mixed precision, regularizers, the guard, and the moving average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from guard import FaultInjector, GradientGuard, StepReport
from guard.act import rng
from jobs.training.regularize import Regularizer
from jobs.training.stopwatch import Stopwatch
from jobs.workloads.losses import loss_of

if TYPE_CHECKING:
    from jobs.workloads.base import Workload

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class Stepper:
    """One rank's step.

    Attributes:
        workload: makes batches and losses.
        model: the module, or its DDP wrapper; with FSDP2 the module itself.
        optimizer: stepped by the guard.
        guard: made with ``scaler``.
        regularizer: acts on the loss, the gradients and the weights.
        faults: to inject.
        device: of the model.
        precision: of the forward pass.
        micro_batches: parts into which this rank's share of the batch is split.
        scaler: of the loss, for fp16.
        average: moving average of the weights.
        data_time: runs while the host waits for batches.
        beat: called before a batch, or a part of it, is computed again: a search for bad samples is no stall.
    """

    workload: Workload
    model: nn.Module
    optimizer: Optimizer
    guard: GradientGuard
    regularizer: Regularizer
    faults: FaultInjector
    device: torch.device
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    micro_batches: int = 1
    scaler: torch.amp.GradScaler | None = None
    average: AveragedModel | None = None
    data_time: Stopwatch = field(default_factory=Stopwatch)
    beat: Callable[[], None] | None = None

    def step(self, ids: NDArray[np.int64], epoch: int) -> StepReport:
        """Trains on this rank's share of a global batch; its gradient is that of the mean over the batch.

        Args:
            ids: sample ids, a multiple of ``micro_batches`` of them.
            epoch: of the batch.
        """
        self.optimizer.zero_grad()
        step = self.guard.steps
        generators = rng.capture()
        self._gradients(ids, epoch, step)

        def again(samples: Sequence[int] | NDArray[np.int64] = ids) -> None:
            if self.beat is not None:
                self.beat()
            rng.restore(generators)  # random numbers that the workload draws are part of the batch
            self.faults.repeat()
            self._gradients(np.asarray(samples, dtype=np.int64), epoch, step)

        report = self.guard.step(again, samples=ids, settle=False)
        if report.applied:
            self.regularizer.after_step_(step, report.learning_rate)
            if self.average is not None:
                self.average.update_parameters(self.model)
        if self.guard.metrics is not None:
            self.guard.metrics.regularization(self.regularizer.strengths(self.guard.steps))
        self.guard.settle()  # now a snapshot contains all that the step has changed
        return report

    def _gradients(self, ids: NDArray[np.int64], epoch: int, step: int) -> None:
        parts = np.array_split(ids, min(self.micro_batches, len(ids)))
        for number, part in enumerate(parts, start=1):
            with self._synchronized(number == len(parts)):
                self._backward(part, epoch, step, weight=len(part) / len(ids))
        self.regularizer.noise_(step, self.scaler.get_scale() if self.scaler else 1.0)

    def _backward(self, ids: NDArray[np.int64], epoch: int, step: int, weight: float) -> None:
        with self.data_time:
            batch = self.workload.train_batch(ids, epoch, self.device)
        batch = self.faults.batch(batch)
        with autocast(self.device, self.precision):
            loss = loss_of(self.workload, self.model, batch)
        penalty = self.regularizer.penalty(step)
        loss = self.faults.loss(loss if penalty is None else loss + penalty)
        self.guard.backward(loss, weight=weight)

    def _synchronized(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are reduced (mean) in a step's last backward; all ranks have as many micro-batches."""
        set_sync = getattr(self.model, "set_requires_gradient_sync", None)  # FSDP2's
        if set_sync is not None:
            set_sync(last)
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which the forward pass of a precision runs."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


def make_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler | None:
    """The loss scale that fp16 needs, so that small gradients do not become zero."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def make_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of the bare model's weights and buffers; None without a decay."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
