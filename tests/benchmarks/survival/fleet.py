"""Two processes that train together, made once and given one run after the other."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from survival.cases import cases
from survival.run import run
from survival.tasks import tasks

RANKS = 2
SubmitRequest = tuple[str, str, str, int]
"""Task, case, method, seed."""


def fleet(orders: Iterable[SubmitRequest], folder: Path) -> Iterator[tuple[SubmitRequest, dict[str, Any]]]:
    """The outcome of each run, in order."""
    context = mp.get_context("spawn")
    inboxes = [context.Queue() for _ in range(RANKS)]
    outbox = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, folder, inboxes[r], outbox)) for r in range(RANKS)]
    for process in ranks:
        process.start()
    try:
        for order in orders:
            for inbox in inboxes:
                inbox.put(order)
            yield order, outbox.get(timeout=600)
    finally:
        for inbox in inboxes:
            inbox.put(None)
        for process in ranks:
            process.join(30)
            process.kill()


def _rank(rank: int, folder: Path, inbox: Any, outbox: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=120))
    known = tasks()
    while (order := inbox.get()) is not None:
        task, name, method, seed = order
        case = next(case for case in cases(known[task]) if case.name == name)
        outcome = run(known[task], case, method, seed)
        if rank == 0:
            outbox.put(outcome.to_dict())
        gc.collect()
    dist.barrier()
    outbox.close()
    outbox.join_thread()
    os._exit(0)
