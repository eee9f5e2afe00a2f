"""A rank that raises, is killed or hangs ends the step on the others within the group's timeout."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, RankLost

pytestmark = pytest.mark.slow


def _rank(rank: int, how: str, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=4))
    model = DistributedDataParallel(nn.Linear(3, 1))
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(3):
        if rank == 1 and step == 2:
            (folder / "pid").write_text(str(os.getpid()))
            if how == "raises":
                guard.report_failure(ValueError("bad batch"))
                os._exit(1)
            os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        try:
            guard.backward(model(torch.ones(4, 3)).square().mean())
            guard.step()
        except RankLost as error:
            (folder / "message").write_text(str(error))
            os._exit(0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "rank 1 failed: ValueError: bad batch"),
        ("killed", "does not answer and left no cause"),
        ("stopped", "does not answer and left no cause"),
    ],
)
def test_a_lost_rank_ends_the_step_of_the_other_with_the_cause(
    tmp_path: Path, how: str, message: str
) -> None:
    context = mp.start_processes(_rank, (how, tmp_path), nprocs=2, join=False, start_method="spawn")
    survivor, lost = context.processes
    survivor.join(60)
    lost.kill()
    lost.join(10)
    assert survivor.exitcode == 0
    assert message in (tmp_path / "message").read_text()
