"""A user's workload that draws from every random number generator, and fails where its options set it to."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn, randn_like

from jobs.workloads.vision import VisionWorkload

MIB = 2**20


class Noisy(VisionWorkload):
    """The digits, with dropout and with noise from Python's, NumPy's and torch's generators.

    Options: what happens once in the life of a job, by the call of ``loss`` in a process. On rank 1:
    ``die_at``, as if by the kernel, and ``raise_at``. On a single rank: ``hang_at``, and ``eat_at``,
    which takes ``eat_mib`` of memory and waits. ``record: true`` keeps the sample ids of each rank in
    ``samples/<world size>-<rank>.jsonl``. ``pause_s``: seconds to wait in each step.
    ``NOISY_EVALUATIONS`` in the environment: how often the test set is gone through.
    """

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self._options, self._folder, self._calls = spec.options, Path(spec.job_dir), 0
        self._share = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._share_size = spec.data.batch_size // self._share[1]

    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.fc = nn.Sequential(nn.Dropout(0.2), model.fc)
        return model

    def train_batch(self, ids: Any, epoch: int, device: Any) -> Any:
        if self._options.get("record") and len(ids) == self._share_size:
            self._record({"epoch": epoch, "ids": ids.tolist()})
        return super().train_batch(ids, epoch, device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self._calls += 1
        self._fail()
        time.sleep(self._options.get("pause_s", 0.0))
        images, labels = batch
        scale = 1 + 0.01 * random.random() + 0.01 * np.random.rand()
        return super().loss(model, (images * scale + 0.01 * randn_like(images), labels))

    def evaluate(self, *arguments: Any) -> dict[str, float]:
        np.random.rand(), random.random()  # an evaluation that draws must not change the training
        for _ in range(int(os.environ.get("NOISY_EVALUATIONS", "1"))):
            sums = super().evaluate(*arguments)
        return sums

    def _fail(self) -> None:
        rank, world_size = self._share
        if rank == 1 and self._now("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and self._now("raise_at"):
            raise ValueError("the loss of sample 17 is undefined")
        if world_size == 1 and self._now("eat_at"):
            eaten = [np.ones(MIB, dtype=np.uint8) for _ in range(self._options["eat_mib"])]
            threading.Event().wait(timeout=len(eaten))
        if world_size == 1 and self._now("hang_at"):
            threading.Event().wait()

    def _now(self, option: str) -> bool:
        """Whether the call has come, for the first time in this job."""
        done = self._folder / option
        if self._calls != self._options.get(option) or done.exists():
            return False
        done.touch()
        return True

    def _record(self, row: dict[str, Any]) -> None:
        rank, world_size = self._share
        folder = self._folder / "samples"
        folder.mkdir(exist_ok=True)
        with (folder / f"{world_size}-{rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
