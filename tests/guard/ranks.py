"""Runs a function on several ranks, each a process, and collects what they return."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=60)


def on_ranks(world_size: int, work: Callable[[int, int, Path], Any], folder: Path) -> list[Any]:
    """``work(rank, world_size, folder)`` of every rank, in rank order; raises the error of any rank."""
    mp.start_processes(_rank, (world_size, work, folder), nprocs=world_size, start_method="spawn")
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(rank: int, world_size: int, work: Callable[[int, int, Path], Any], folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = work(rank, world_size, folder)
    finally:
        gc.collect()  # models in reference cycles hold the process group
        dist.destroy_process_group()
    torch.save(result, folder / f"rank-{rank}.pt")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # torch's threads do not survive the end of an interpreter reliably
