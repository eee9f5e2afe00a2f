"""What one rank trains with: the parts that the loop works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from guard import GradientGuard
from guard.observe.watched import unwrap
from jobs.checkpoints import CheckpointManager
from jobs.data.cursor import DataCursor
from jobs.observability.profile import StepProfiler
from jobs.observability.progress import Progress
from jobs.placement.hardware_faults import HardwareFaults
from jobs.spec.job_spec import JobSpec
from jobs.training.stepper import Stepper
from jobs.training.stop import StopWatcher
from jobs.training.watchdog import Watchdog
from jobs.workloads.base import ReadsAhead, Workload


@dataclass(frozen=True, slots=True)
class World:
    """This rank among the others: ``nodes`` has the node id of each rank, ``places`` its display name;
    ``tensor`` neighbours compute the same samples."""

    rank: int
    size: int
    device: torch.device
    nodes: list[str]
    places: list[str]
    tensor: int = 1

    @property
    def data_rank(self) -> int:
        """Which share of each batch this rank computes."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        """Shares of each batch."""
        return self.size // self.tensor


@dataclass(frozen=True, slots=True)
class Data:
    """What is trained on, and for how long."""

    workload: Workload
    cursor: DataCursor
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training set."""
        return self.cursor.batches_per_epoch


@dataclass(frozen=True, slots=True)
class Model:
    """What is trained: ``wrapped`` is the module in DDP, where there are several ranks that each have it."""

    wrapped: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler | None
    average: AveragedModel | None
    unused: tuple[str, ...] = ()
    """Parameters that the loss does not use, by name, where DDP must know."""
    divided: bool = False
    """Whether each rank has a part of it, so that a forward pass needs all ranks."""

    @property
    def bare(self) -> nn.Module:
        """The module without its DDP wrapper."""
        return unwrap(self.wrapped)

    @property
    def evaluated(self) -> nn.Module:
        """The moving average of the weights where there is one, else the model."""
        return self.bare if self.average is None else self.average.module


@dataclass(frozen=True, slots=True)
class Run:
    """One rank's part of a training job, ready to start or to continue."""

    spec: JobSpec
    world: World
    data: Data
    model: Model
    guard: GradientGuard
    stepper: Stepper
    progress: Progress
    hardware: HardwareFaults
    checkpoints: CheckpointManager
    stop: StopWatcher
    watchdog: Watchdog
    profiler: StepProfiler | None = None

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        train = self.spec.train
        return train.eval_every_steps or train.eval_every_epochs * self.data.steps_per_epoch

    @property
    def moving(self) -> bool:
        """Whether this training ends here because the job continues on other nodes."""
        return bool(self.hardware.nodes_to_leave)

    def close(self) -> None:
        """Ends the workload's prefetching, and a profile."""
        if self.profiler is not None:
            self.profiler.close()
        if isinstance(self.data.workload, ReadsAhead):
            self.data.workload.close()
