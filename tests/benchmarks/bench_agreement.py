"""What the agreement costs: one row of 20 bytes a rank, gathered on gloo, alone and behind a backward.

    python tests/benchmarks/bench_agreement.py [--rounds N] [--json FILE]

The model of ``modelled_us``: a ring all-gather over n ranks takes n - 1 hops of one latency each, and moves
20 n bytes past each rank. At 10,000 ranks that is 200 kB, 20 us at an ASSUMED 10 GB/s: latency dominates. A
tree needs log2(n) hops instead. The hop is the measured time at 2 ranks, so a loopback's, with this machine's
scheduler in it; a network's is to be put in its place. The gather is hidden where backward takes longer.
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
from measure import show

from guard.agree import WIDTH, Agreement

BYTES_A_RANK = 4 * WIDTH
BYTES_PER_US = 10_000.0
"""Assumed: 10 GB/s."""


def _rank(rank: int, world_size: int, rounds: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    agreement = Agreement(None, torch.device("cpu"))
    loss, weights = torch.ones(()), torch.randn(256, 256)
    seconds: dict[str, list[float]] = {"alone": [], "work": [], "behind": []}
    for _ in range(rounds):
        for name in seconds:
            dist.barrier()  # all ranks: so that a round begins together
            started = time.perf_counter()
            if name != "work":
                agreement.send(loss, stop=False, local_norm=1.0, grad_norm=1.0, digest=1)
            if name != "alone":
                for _ in range(10):
                    weights @ weights
            if name != "work":
                agreement.receive()
            seconds[name].append(time.perf_counter() - started)
    dist.barrier()  # all ranks: so that none leaves while another still gathers
    if rank == 0:
        np.save(f"{folder}/seconds.npy", np.array(list(seconds.values())))
    os._exit(0)


def measured(world_size: int, rounds: int) -> dict[str, Any]:
    """Medians in microseconds; ``behind`` is what the gather adds to work that runs meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (world_size, rounds, folder), nprocs=world_size, start_method="spawn")
        alone, work, behind = np.load(Path(folder) / "seconds.npy") * 1e6
    added = float(np.median(behind - work))
    return {"ranks": world_size, "alone us": float(np.median(alone)), "added behind work us": added}


def modelled_us(world_size: int, hop_us: float) -> dict[str, Any]:
    """The ring and the tree model."""
    transfer = BYTES_A_RANK * world_size / BYTES_PER_US
    return {
        "ring us": (world_size - 1) * hop_us + transfer,
        "tree us": math.ceil(math.log2(world_size)) * hop_us + transfer,
        "bytes": BYTES_A_RANK * world_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measured(n, options.rounds) for n in (2, 4, 8)]
    hop = rows[0]["alone us"]
    unknown = {"alone us": "-", "added behind work us": "-"}
    rows += [{"ranks": n, **unknown} for n in (64, 1000, 10_000)]
    show("agreement", [{**row, **modelled_us(row["ranks"], hop)} for row in rows], options.json)


if __name__ == "__main__":
    main()
