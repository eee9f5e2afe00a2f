"""What is trained at every rate: four networks that fail in different ways, each at a rate that suits it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from survival.tasks import VOCABULARY, WIDTH, Batch, Task
from survival.tasks import tasks as survival_tasks
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

TRAIN_IMAGES = 897

MakeOptimizer = Callable[[Iterable[nn.Parameter], float], Optimizer]


@dataclass(frozen=True, slots=True)
class RateTask:
    """A network with its data, and the optimizer that it is trained with.

    Attributes:
        task: ``task.lr`` is the best rate of 1, 3, 10 times some power of ten without any method.
        repeats: how many times as many seeds it gets as others, where its loss differs more between seeds.
    """

    task: Task
    optimizer: MakeOptimizer
    repeats: int = 1


class LSTM(nn.Module):
    """A layer of LSTM on the GPT's text."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(tokens))[0])


def cnn() -> nn.Module:
    """Two convolutions with BatchNorm."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def mlp() -> nn.Module:
    """Three hidden layers without normalization."""
    hidden = [layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(64, 10))


def tasks() -> dict[str, RateTask]:
    """All tasks by name."""
    text = replace(survival_tasks()["gpt"], batch_size=16)
    momentum = partial(SGD, momentum=0.9)
    return {
        "CNN, SGD": RateTask(_images("cnn", cnn, 0.1), momentum, repeats=3),
        "MLP, Adam": RateTask(_images("mlp", mlp, 0.01), Adam, repeats=3),
        "GPT, AdamW": RateTask(replace(text, lr=0.01), AdamW),
        "LSTM, SGD": RateTask(replace(text, name="lstm", build=LSTM, lr=3.0), momentum),
    }


def _images(name: str, build: Callable[[], nn.Module], lr: float) -> Task:
    train, test = digits()
    return Task(
        name=name,
        build=build,
        batch=lambda ids: (train[0][ids], train[1][ids], torch.ones(len(ids))),
        score=lambda model: _held_out(model, test),
        samples=TRAIN_IMAGES,
        lr=lr,
        batch_size=32,
        layer="*",
        buffers=None,
    )


@cache
def digits() -> tuple[Batch, Batch]:
    """scikit-learn's digits, shuffled once; the last 900 are held out."""
    from sklearn.datasets import load_digits

    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order].float() / 16, labels[order]
    weights = torch.ones(len(labels))
    split = [part.split([TRAIN_IMAGES, len(labels) - TRAIN_IMAGES]) for part in (images, labels, weights)]
    return tuple(p[0] for p in split), tuple(p[1] for p in split)


@torch.no_grad()
def _held_out(model: nn.Module, batch: Batch) -> float:
    model.eval()
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    model.train()
    return float(loss)
