"""One rank's training under a layout, without Ray: all parts of a job's loop, as the job has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from guard import StepReport
from guard.act.snapshot import Stateful
from guard.observe.shards import is_distributed, local
from jobs.checkpoints import CheckpointManager
from jobs.cluster.session import PACKAGE_ROOT
from jobs.data.cursor import DataCursor, shard
from jobs.init import build_initialized
from jobs.layout.build import build_sharded
from jobs.spec.job_spec import JobSpec
from jobs.training.evaluate import evaluate
from jobs.training.optim import build_optimizer, build_schedule
from jobs.training.run import Data, Model, World
from jobs.training.setup import build_stepper
from jobs.training.stepper import Stepper
from jobs.workloads import load_workload

CPU = torch.device("cpu")
TEXT = PACKAGE_ROOT / "jobs" / "SPEC.md"
GPT: dict[str, Any] = {
    "workload": "language",
    "model": {"name": "gpt", "layers": 2, "heads": 4, "width": 32, "context": 16},
    "data": {"path": str(TEXT), "batch_size": 16, "train_limit": 400, "test_limit": 9},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "schedule": {"warmup_steps": 2},
    "train": {"max_steps": 40},
    "preflight": "off",
    "guard": {"snapshot": {"every_steps": 4}},
}


def spec_of(
    folder: Path, parallel: dict[str, Any] | None = None, train: dict[str, Any] | None = None
) -> JobSpec:
    """The small GPT on as many workers as there are ranks."""
    scale = {"workers": dist.get_world_size() if dist.is_initialized() else 1}
    document = {**GPT, "scale": scale, "parallel": parallel or {}, "storage": str(folder)}
    if train:
        document["train"] = {**GPT["train"], **train}
    return JobSpec.from_dict(document)


@dataclass
class Training:
    """Parts of a run on this rank."""

    spec: JobSpec
    world: World
    data: Data
    model: Model
    stepper: Stepper

    def step(self, poison: Callable[[], bool] = lambda: False) -> StepReport:
        """One attempt; where ``poison`` says so, this rank's loss is NaN."""
        batch = self.data.cursor.next_batch()
        ids = shard(batch.ids, self.world.data_rank, self.world.data_size)
        backward = self.stepper.guard.backward
        if poison():
            self.stepper.guard.backward = lambda loss, weight=1.0: backward(loss * torch.nan, weight=weight)  # type: ignore[method-assign]
        report = self.stepper.step(ids, batch.epoch)
        self.stepper.guard.backward = backward  # type: ignore[method-assign]
        return report

    def losses(self, steps: int) -> list[float]:
        return [self.step().loss for _ in range(steps)]

    def checkpoints(self, folder: Path) -> CheckpointManager:
        parts: dict[str, Stateful] = {
            "model": self.model.bare,
            "optimizer": self.model.optimizer,
            "schedule": self.model.schedule,
            "cursor": self.data.cursor,
            "guard": self.stepper.guard,
        }
        return CheckpointManager(folder, parts, spec=self.spec.model_dump(mode="json"))

    def resume(self, folder: Path) -> int | None:
        """Continues from the newest good checkpoint there."""
        return self.checkpoints(folder).load_latest()

    def keep(self, folder: Path) -> None:
        """A good checkpoint of the present state."""
        kept = self.checkpoints(folder)
        kept.save(self.stepper.guard.steps, closing=True)

    def held(self) -> list[Tensor]:
        """What this rank holds of weights and moments."""
        states = self.model.optimizer.state
        own = list(self.model.bare.parameters())
        moments = [value for p in own for value in states.get(p, {}).values() if isinstance(value, Tensor)]
        return [local(tensor).detach().clone() for tensor in [*own, *moments]]

    def evaluated(self) -> dict[str, float] | None:
        """The sums over the test set, as the job computes them. Collective."""
        run: Any = SimpleNamespace(
            world=self.world,
            model=self.model,
            data=self.data,
            watchdog=_Quiet(),
            stop=_Quiet(),
        )
        return evaluate(run)

    def whole(self) -> dict[str, Tensor]:
        """The weights under their names, each whole. Collective."""
        state = self.model.bare.state_dict()
        return {name: full(value).clone() for name, value in state.items()}


class _Quiet:
    """Nobody asks for a stop, and nobody waits for a sign of life."""

    def beat(self) -> None:
        pass

    def requested(self) -> bool:
        return False


def full(value: Any) -> Tensor:
    return (value.full_tensor() if is_distributed(value) else value).detach()  # type: ignore[no-any-return]


def begin(spec: JobSpec) -> Training:
    """A new training on the ranks of this process group, or in this process."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if size > 1 else 0
    world = World(rank, size, CPU, ["node"] * size, ["here"] * size, spec.parallel.tensor)
    workload = load_workload(spec)
    data = Data(workload, DataCursor(workload.n_train, spec.data.batch_size, spec.seed), 40)
    torch.manual_seed(spec.seed + rank)
    divided = spec.parallel.sharded
    if divided:
        wrapped: nn.Module = build_sharded(spec, workload, CPU)
    else:
        wrapped = build_initialized(spec, workload)
        wrapped = DistributedDataParallel(wrapped) if size > 1 else wrapped
    optimizer = build_optimizer(spec.optimizer, wrapped.parameters(), decay_on="auto")
    schedule = build_schedule(spec.schedule, optimizer, data.total_steps)
    model = Model(wrapped, optimizer, schedule, None, None, divided=divided)
    return Training(spec, world, data, model, build_stepper(spec, data, model, world))
