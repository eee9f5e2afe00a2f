"""A workload of one's own that draws from every random number generator, and fails where it is told to."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.workloads.vision import VisionWorkload


class Noisy(VisionWorkload):
    """The digits, with dropout and with noise from Python's, NumPy's and torch's generators.

    Options: ``raise_at`` and ``die_at`` count calls of ``loss`` on rank 1; it dies once, as if by the kernel
    for want of memory. ``NOISY_EVALUATIONS`` in the environment: how often the test set is gone through.
    """

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self._options, self._folder, self._calls = spec.options, Path(spec.job_dir), 0

    def build_model(self) -> nn.Module:
        model = super().build_model()
        model.fc = nn.Sequential(nn.Dropout(0.2), model.fc)
        return model

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self._calls += 1
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            self._fail()
        images, labels = batch
        scale = 1 + 0.01 * random.random() + 0.01 * np.random.rand()
        return super().loss(model, (images * scale + 0.01 * torch.randn_like(images), labels))

    def evaluate(self, *arguments: Any) -> dict[str, float]:
        np.random.rand(), random.random()  # an evaluation that draws must not change the training
        for _ in range(int(os.environ.get("NOISY_EVALUATIONS", "1"))):
            sums = super().evaluate(*arguments)
        return sums

    def _fail(self) -> None:
        died = self._folder / "died"
        if self._calls == self._options.get("die_at") and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self._calls == self._options.get("raise_at") and ("die_at" not in self._options or died.exists()):
            raise ValueError("the loss of sample 17 is undefined")
