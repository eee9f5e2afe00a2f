"""A guard among thousands of ranks in one process: torch's fake backend, and the rows they would send."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from guard import GradientGuard, GuardConfig, GuardMetrics, StepReport
from guard.agree import agreement
from guard.agree.agreement import LOCAL_NORM, LOSS, SQUARE, WIDTH

ROUNDING = 1e-7
"""By how much the norms of the ranks differ, relative: allowed, and the longer way through the checks."""


class ManyRanks:
    """This process is rank 0 of ``ranks``; ``step`` runs one guarded step among them."""

    def __init__(self, ranks: int, journal: Path | None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.metrics = GuardMetrics(job="many")
        config = GuardConfig.model_validate({"update_norm": "off"})
        self.guard = GradientGuard(
            self.model, self.optimizer, config, metrics=self.metrics, journal=journal, job="many"
        )
        self.batch = torch.randn(16, 8)

    def backward(self, factor: float = 1.0) -> None:
        """The part that a loop without a guard has too, and the note of the loss."""
        self.optimizer.zero_grad()
        self.guard.backward(self.model(self.batch).square().mean() * factor)

    def step(self, factor: float = 1.0) -> StepReport:
        self.backward(factor)
        return self.guard.step()


@contextmanager
def many_ranks(ranks: int, journal: Path | None = None) -> Iterator[ManyRanks]:
    """Within it, the default process group has ``ranks`` ranks, all but this one simulated."""
    generator = torch.Generator().manual_seed(1)
    noise = 1 + 0.1 * torch.rand(ranks, generator=generator, dtype=torch.float64)
    rounding = 1 + ROUNDING * torch.rand(ranks, generator=generator, dtype=torch.float64)

    def gathered(rows: Tensor, row: Tensor, group: Any) -> None:
        rows = rows.view(ranks, -1)
        rows.copy_(row)
        if rows.shape[1] == WIDTH:
            rows[:, LOSS] *= noise
            rows[:, LOCAL_NORM] *= noise
            rows[:, SQUARE] *= rounding

    torchs = agreement._all_gather
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    agreement._all_gather = gathered
    try:
        yield ManyRanks(ranks, journal)
    finally:
        agreement._all_gather = torchs
        dist.destroy_process_group()
