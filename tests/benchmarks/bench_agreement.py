"""Cost of the agreement: one small row per rank, gathered after backward.

    python tests/benchmarks/bench_agreement.py [--rounds N] [--json FILE]

Measured, on gloo over loopback with one thread a rank: the gather alone, a DDP step's backward alone, and
both together; what the gather adds is the median of the paired differences. With more ranks than cores the
operating system's scheduler is measured, not the gather.

The model, for ranks that have a core each. A row has 64 bytes. A ring all-gather over n ranks makes n - 1
hops of one latency each and moves 64 n bytes past each rank; a tree (NCCL's choice for small messages,
since 2.23) makes ceil(log2 n) hops. At 10,000 ranks the bytes are 640 kB, 64 us at an ASSUMED 10 GB/s, so
that the hops decide: with an ASSUMED 5 us a hop a tree takes 0.1 ms and a ring 50 ms, with an ASSUMED 30 us
(TCP) 0.4 ms and 300 ms. Every rank waits for the gather, since what it compares is known only after backward:
for thousands of ranks the guard needs a backend that gathers by a tree.

Apart from the network: what a step, an incident and a scrape cost one process among simulated ranks.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from many_ranks.simulated import many_ranks
from measure import median_ms, publish, timed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guard.agree.agreement import WIDTH, Agreement

SEED = 0
SIMULATED = (8, 1000, 8000)
WARM_STEPS = 15
BYTES_A_RANK = 8 * WIDTH
BYTES_PER_US = 10_000.0
HOPS_US = {"5 us a hop": 5.0, "30 us a hop": 30.0}
MODELLED = (8, 64, 512, 4096, 10_000)


def _rank(rank: int, world_size: int, rounds: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    agreement = Agreement(None, torch.device("cpu"))
    model = DistributedDataParallel(nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))))
    inputs = torch.randn(64, 512)
    seconds: dict[str, list[float]] = {"alone": [], "backward": [], "both": []}
    for _ in range(rounds):
        for name, taken in seconds.items():
            loss = model(inputs).square().mean()
            dist.barrier()  # all ranks: a round starts together
            started = time.perf_counter()
            if name != "alone":
                loss.backward()
            if name != "backward":
                agreement.add(loss)
                rows = agreement.gather(local_norm=1.0, square=1.0, digest=1)
                agreement.read(rows.numpy().copy(), dict)
            taken.append(time.perf_counter() - started)
    dist.barrier()  # all ranks: none leaves while another still gathers
    if rank == 0:
        np.save(f"{folder}/seconds.npy", np.array(list(seconds.values())))
    os._exit(0)


def measured(world_size: int, rounds: int) -> dict[str, Any]:
    """Medians in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (world_size, rounds, folder), nprocs=world_size, start_method="spawn")
        alone, backward, both = np.load(Path(folder) / "seconds.npy") * 1e6
    return {
        "ranks": world_size,
        "gather alone us": float(np.median(alone)),
        "DDP backward us": float(np.median(backward)),
        "gather adds us": float(np.median(both - backward)),
    }


def modelled(world_size: int) -> dict[str, Any]:
    """Ring and tree, in microseconds, for each assumed hop."""
    transfer = BYTES_A_RANK * world_size / BYTES_PER_US
    row: dict[str, Any] = {"ranks": world_size, "bytes": BYTES_A_RANK * world_size}
    for name, hop in HOPS_US.items():
        row[f"ring us, {name}"] = (world_size - 1) * hop + transfer
        row[f"tree us, {name}"] = math.ceil(math.log2(world_size)) * hop + transfer
    return row


def among_many(ranks: int, rounds: int) -> dict[str, Any]:
    """What ``guard.step`` takes among simulated ranks: reads, judges, records; once with an incident."""
    with tempfile.TemporaryDirectory() as folder, many_ranks(ranks, Path(folder) / "incidents.jsonl") as many:
        seconds: list[float] = []
        for _ in range(WARM_STEPS + rounds):
            many.backward()
            seconds.append(timed(many.guard.step))
        many.backward(math.nan)
        return {
            "ranks": ranks,
            "guard.step ms": median_ms(seconds[WARM_STEPS:]),
            "with an incident ms": 1e3 * timed(many.guard.step),
            "scrape ms": median_ms([timed(many.metrics.snapshot) for _ in range(5)]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tables = {
        "agreement, measured": [measured(ranks, options.rounds) for ranks in (2, 4, 8)],
        "agreement, modelled": [modelled(ranks) for ranks in MODELLED],
        "a step among simulated ranks": [among_many(ranks, options.rounds) for ranks in SIMULATED],
    }
    publish("agreement", tables, options.json, seeds=[SEED])


if __name__ == "__main__":
    main()
