"""Five networks that resemble none of the others, with data of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from survival.tasks import Batch, Task
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, RMSprop

from early_warning.networks import MakeOptimizer, data

SAMPLES = 4000


class Distances(Task):
    """The squared distance to the labels."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.mse_loss(model(batch[0]), batch[1])


class Translator(nn.Module):
    """Encoder and decoder of a block each: ten digits, and the nine before the next of their reverse."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(11, width), nn.Linear(width, 11)
        self.places = nn.Parameter(0.1 * torch.randn(10, width))
        self.blocks = nn.Transformer(width, 4, 1, 1, 64, 0.0, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        source, target = (self.tokens(part) + self.places for part in tokens.chunk(2, 1))
        mask = nn.Transformer.generate_square_subsequent_mask(10)
        return self.head(self.blocks(source, target, tgt_mask=mask, tgt_is_causal=True))


class Adder(nn.Module):
    """A GRU over 15 numbers, of which two are marked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(2, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.head(self.layer(numbers)[0][:, -1])


class Factors(nn.Module):
    """Ratings of 150 things by 200 people, as products of eight factors of each."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns, self.mean = (
            nn.Embedding(200, 8),
            nn.Embedding(150, 8),
            nn.Parameter(torch.zeros(1)),
        )
        for embedding in (self.rows, self.columns):
            nn.init.normal_(embedding.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.rows(pairs[:, 0]) * self.columns(pairs[:, 1])).sum(1, keepdim=True) + self.mean


class Graph(nn.Module):
    """Three graph convolutions (Kipf and Welling 2017) on 160 nodes of four kinds."""

    def __init__(self) -> None:
        super().__init__()
        source, kinds = torch.Generator().manual_seed(9), torch.arange(160) % 4
        likely = torch.where(kinds[:, None] == kinds, 0.15, 0.02)
        near = (torch.rand(160, 160, generator=source) < likely).float().triu(1)
        near += near.T + torch.eye(160)
        features = torch.randn(160, 24, generator=source) + 0.8 * functional.one_hot(kinds, 24)
        self.register_buffer("near", near * near.sum(1).rsqrt() * near.sum(1, keepdim=True).rsqrt())
        self.register_buffer("features", features)
        self.layers = nn.ModuleList([nn.Linear(24, 32), nn.Linear(32, 32), nn.Linear(32, 4)])

    def forward(self, nodes: Tensor) -> Tensor:
        first, second, last = self.layers
        x = (self.near @ first(self.features)).relu()
        return (self.near @ last((self.near @ second(x)).relu()))[nodes]


def unlike() -> dict[str, tuple[Task, MakeOptimizer, float]]:
    """Task, optimizer and right rate, by name, as in ``further``."""
    digits = data()[0]
    source = torch.Generator().manual_seed(7)

    def task(kind: type[Task], build: Callable[[], nn.Module], inputs: Tensor, labels: Tensor) -> Task:
        same = {name: getattr(digits, name) for name in Task.__slots__}
        parts = {
            "build": build,
            "samples": len(inputs),
            "batch": lambda ids: (inputs[ids], labels[ids], torch.ones(len(ids))),
        }
        return kind(**{**same, **parts})

    numbers = torch.randint(10, (SAMPLES, 10), generator=source)
    shifted = functional.pad(numbers.flip(1)[:, :-1], (1, 0), value=10)
    terms, marks = torch.rand(SAMPLES, 15, generator=source), torch.rand(SAMPLES, 15, generator=source)
    marks = (marks >= marks.topk(2).values[:, 1:]).float()
    pairs = torch.stack([torch.randint(size, (SAMPLES,), generator=source) for size in (200, 150)], 1)
    people, things = (torch.randn(size, 6, generator=source) for size in (200, 150))
    rated = 3 + (people[pairs[:, 0]] * things[pairs[:, 1]]).sum(1, keepdim=True) / 2
    rows, far = torch.randn(SAMPLES, 12, generator=source), torch.rand(SAMPLES, 1, generator=source)
    values = 2 * torch.sin(rows[:, :1] * rows[:, 1:2]) + rows[:, 2:3].square() + rows[:, 3:4]
    outliers = values + 0.3 * torch.randn(SAMPLES, 1, generator=source) / far.clamp(min=0.02).sqrt()
    return {
        "translator": (task(Task, Translator, torch.cat([numbers, shifted], 1), numbers.flip(1)), Adam, 5e-3),
        "adder": (
            task(Distances, Adder, torch.stack([terms, marks], 2), (terms * marks).sum(1, keepdim=True)),
            RMSprop,
            1e-2,
        ),
        "factors": (task(Distances, Factors, pairs, rated), partial(SGD, momentum=0.9), 0.2),
        "graph": (task(Task, Graph, torch.arange(160), torch.arange(160) % 4), Adam, 0.02),
        "outliers": (task(Distances, table, rows, outliers), partial(SGD, momentum=0.9), 1e-2),
    }


def table() -> nn.Module:
    """For a table of twelve columns, whose labels have outliers."""
    return nn.Sequential(nn.Linear(12, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
