"""A rank that raises, is killed or hangs ends the step on the others within the group's timeout, by name."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
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

LOST_RANK, LAST_STEP = 1, 2


class Fails(torch.autograd.Function):
    """Raises in backward, as a kernel that is out of memory does."""

    @staticmethod
    def forward(_: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(*_: object) -> torch.Tensor:
        raise ValueError("bad batch")


class Victim:
    """What befalls one rank in its last step, and where."""

    def __init__(self, how: str, guard: GradientGuard, model: nn.Module) -> None:
        self.how, self._guard, self._model = how, guard, model

    def last_step(self) -> None:
        if self.how == "reported":
            self._guard.report_failure(ValueError("bad batch"))
            os._exit(1)
        if self.how == "raises in backward":
            self._raise()
        if self.how == "raises between backward and step":
            self._guard.backward(self._model(torch.ones(4, 3)).square().mean())
            raise KeyError("label 7")
        if self.how == "misused":
            self._guard.backward(self._model(torch.ones(4, 3)))  # one loss for each of four samples
        if self.how.endswith("in the all-reduce"):
            self._guard.observe_loss(torch.tensor(1.0))  # its row arrives: the next to fail is DDP itself
        os.kill(os.getpid(), signal.SIGSTOP if "stopped" in self.how else signal.SIGKILL)

    def _raise(self) -> None:
        try:
            self._guard.backward(Fails.apply(self._model(torch.ones(4, 3))).square().mean())
        finally:
            os._exit(1)


def _rank(rank: int, ranks: int, how: str, port: int | None, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=_store(rank, ranks, port, folder),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=4),
    )
    model = DistributedDataParallel(nn.Linear(3, 1))
    guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    victim = Victim(how, guard, model)
    for step in range(LAST_STEP + 1):
        model.zero_grad()
        if rank == LOST_RANK and step == LAST_STEP:
            victim.last_step()
        try:
            guard.backward(model(torch.ones(4, 3)).square().mean())
            (folder / f"backward-{rank}").write_text(str(step))
            guard.step()
        except RankLost as error:
            (folder / f"message-{rank}").write_text(str(error))
            os._exit(0)


def _store(rank: int, ranks: int, port: int | None, folder: Path) -> dist.Store:
    if port is None:
        return dist.FileStore(str(folder / "store"), ranks)
    return dist.TCPStore("127.0.0.1", port, ranks, is_master=rank == 0, wait_for_workers=False)


SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
from guard import GradientGuard

rank = int(sys.argv[1])
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
model = torch.nn.Linear(3, 1)
torch.nn.init.ones_(model.weight)
guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1))
try:
    guard.backward(model(torch.ones(4, 3)).mean())
    if rank:
        raise KeyError("label 7")
    guard.step()
finally:
    dist.destroy_process_group()
"""


def outputs(script: str, folder: Path) -> list[str]:
    """What each of two ranks of a script wrote to standard error."""
    program = [sys.executable, "-c", script]
    ranks = [
        subprocess.Popen([*program, str(rank), str(folder / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    return [process.communicate(timeout=120)[1] for process in ranks]


def test_an_error_that_ends_a_script_reaches_the_other_rank(tmp_path: Path) -> None:
    said = outputs(SCRIPT, tmp_path)
    assert "RankLost: rank 1 failed: KeyError: 'label 7'" in said[0]
    assert "KeyError: 'label 7'" in said[1]


DIVIDED = """
import os, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from guard import GradientGuard

rank = int(sys.argv[1])
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
store = dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=30))

class Block(nn.Linear):
    def forward(self, inputs):
        if rank and step == 2:
            raise ValueError("label 7")
        return super().forward(inputs)

model = nn.Sequential(Block(8, 8), Block(8, 8))
for block in model:
    fully_shard(block)
fully_shard(model)
guard = GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1))
for step in range(4):
    model.zero_grad()
    guard.backward(model(torch.ones(4, 8)).mean())
    guard.step()
"""


def test_an_error_within_a_divided_forward_is_named_by_the_rank_that_waits_in_it(tmp_path: Path) -> None:
    said = outputs(DIVIDED, tmp_path)
    assert "RankLost: rank 1 failed: ValueError: label 7" in said[0]
    assert "ValueError: label 7" in said[1]


def messages(folder: Path, how: str, *, ranks: int = 2, port: int | None = None) -> dict[int, str]:
    """What each survivor printed; fails if one of them had to be killed."""
    context = mp.start_processes(
        _rank, (ranks, how, port, folder), nprocs=ranks, join=False, start_method="spawn"
    )
    survivors = [p for rank, p in enumerate(context.processes) if rank != LOST_RANK]
    for process in survivors:
        process.join(60)
    context.processes[LOST_RANK].kill()
    context.processes[LOST_RANK].join(10)
    assert [p.exitcode for p in survivors] == [0] * (ranks - 1)
    return {r: (folder / f"message-{r}").read_text() for r in range(ranks) if r != LOST_RANK}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("reported", "rank 1 failed: ValueError: bad batch"),
        ("raises in backward", "rank 1 failed: ValueError: bad batch"),
        ("raises between backward and step", "rank 1 failed: KeyError: 'label 7'"),
        ("misused", "rank 1 failed: GuardError: the loss has shape (4, 1)"),
        ("killed", "rank 1 does not answer and reported no cause"),
        ("stopped", "rank 1 does not answer and reported no cause"),
    ],
)
def test_a_lost_rank_ends_the_step_of_the_other_with_the_cause(
    tmp_path: Path, how: str, message: str
) -> None:
    assert message in messages(tmp_path, how)[0]


def test_the_all_reduce_of_ddp_ends_with_the_cause_too(tmp_path: Path) -> None:
    assert "rank 1 does not answer" in messages(tmp_path, "killed in the all-reduce")[0]
    assert (tmp_path / "backward-0").read_text() == str(LAST_STEP - 1), "it was lost within backward"


def test_three_ranks_around_a_tcp_store_name_the_one_that_hangs(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = messages(tmp_path, "stopped", ranks=3, port=port)
    assert all("rank 1 does not answer" in text for text in said.values()), said
