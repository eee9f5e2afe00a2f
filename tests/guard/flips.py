"""Runs in which one bit flips in the memory of one rank, each compared with the run in which none does."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, GuardConfig
from guard.faults.injector import flip_bit_
from tests.guard.loops import Cursor, Run, differences

EVERY = 3
STEPS = 16
KINDS = ("weight", "moment", "buffer", "gradient")


class Flip(NamedTuple):
    """What flips where; ``late``: after the backward, not before the forward."""

    kind: str
    bit: int
    attempt: int
    rank: int
    place: int
    late: bool


class Network(nn.Module):
    """Buffers that are equal on all ranks: one that is constant, one that follows the weights."""

    mask: Tensor
    follows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4, bias=False)
        self.register_buffer("mask", torch.linspace(0.5, 1.5, 16))
        self.register_buffer("follows", torch.zeros(16))

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.follows.mul_(0.9).add_(self.up.weight.mean(1), alpha=0.1)
        return self.down(torch.tanh(self.up(inputs)) * self.mask + 0.1 * self.follows)


LATER = 30
"""Attempts after which the device decides, in mode ``deferred``."""


def draw(flips: int, world_size: int, seed: int = 0, later: int = 0) -> list[Flip]:
    """All 32 bits of a float32, in tensors of all kinds, in one of seven attempts, ``later`` or not."""
    chance = random.Random(seed)
    return [
        Flip(
            KINDS[i % len(KINDS)],
            (i // len(KINDS)) % 32,
            later + chance.randrange(5, 12),
            chance.randrange(world_size),
            chance.randrange(1 << 20),
            chance.random() < 0.5,
        )
        for i in range(flips)
    ]


def run(
    rank: int,
    world_size: int,
    flip: Flip | None,
    steps: int = STEPS,
    every: Any = EVERY,
    *,
    mode: str = "exact",
) -> dict[str, Any]:
    """Trains, in mode ``deferred`` for longer; returns incidents, last state and counts."""
    torch.manual_seed(0)
    model = Network()
    deferred = mode == "deferred"
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=deferred)
    ddp = DistributedDataParallel(model)
    ddp.broadcast_buffers = False  # a flipped bit of a buffer stays; releases of torch differ in its argument
    cursor = Cursor(rank=rank, world_size=world_size)
    config = {
        "mode": mode,
        "replicas": every,
        # No run returns to its start: DDP orders its buckets after the first step, and so the sum of three.
        "snapshot": {"every_steps": EVERY if every == EVERY else 50},
        "local_norm": "off",
    }
    guard = GradientGuard(ddp, optimizer, GuardConfig.model_validate(config), data=cursor)
    trained, incidents = Run(ddp, optimizer, None, cursor, guard), []
    while guard.steps < steps + LATER * deferred:
        now = flip is not None and flip.rank == rank and flip.attempt == guard.attempts + 1
        if flip is not None and now and not flip.late and flip.kind != "gradient":
            _flip(model, optimizer, flip)
        optimizer.zero_grad()
        guard.backward(trained.loss())
        if flip is not None and now and (flip.late or flip.kind == "gradient"):
            _flip(model, optimizer, flip)
        reports = [guard.step()]
        if guard.steps == steps + LATER and (late := guard.flush()) is not None:
            reports.append(late)
        incidents += [report.incident for report in reports if report.incident is not None]
    return {
        "found": [(i.attempt, i.faulty_ranks, i.reason) for i in incidents],
        "state": trained.state(),
        "faults": guard.totals.hardware_faults,
    }


def judged(flip: Flip, ranks: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """What became of a flip: whether it was found, after how many attempts, named, and left no trace."""
    found = ranks[0]["found"]
    pairs = zip(ranks, plain, strict=True)
    apart = [name for mine, theirs in pairs for name in differences(mine["state"], theirs["state"])]
    return {
        "flip": flip,
        "found": bool(found),
        "after": found[0][0] - flip.attempt if found else None,
        "named": any(faulty == [flip.rank] for _, faulty, _ in found),
        "others": [faulty for _, faulty, _ in found if faulty not in ([flip.rank], [-1])],
        "differ": apart[:3],
        "said": [reason for _, _, reason in found],
    }


def _flip(model: Network, optimizer: torch.optim.Optimizer, flip: Flip) -> None:
    parameters = list(model.parameters())
    # With a negative step AdamW itself raises, on that rank alone and before any comparison.
    moments = ("exp_avg", "exp_avg_sq", "step")[: 2 if flip.bit == 31 else 3]
    targets: dict[str, list[Any]] = {
        "weight": parameters,
        "moment": [optimizer.state[p][key] for p in parameters for key in moments],
        "buffer": [model.mask, model.follows],
        "gradient": [p.grad for p in parameters],
    }
    chosen = targets[flip.kind][flip.place % len(targets[flip.kind])]
    flip_bit_(chosen, flip.place % chosen.numel(), flip.bit)
