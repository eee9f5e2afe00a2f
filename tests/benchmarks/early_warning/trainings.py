"""Explosions that nobody injected: rates that creep up 1 % a step, or rise to 30 times the right one.

And healthy runs of the same models, at their rate and with a warm-up to it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from rates.tasks import LSTM, tasks
from survival.tasks import VOCABULARY, WIDTH, Batch, Task
from survival.tasks import tasks as survival_tasks
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from early_warning.log import Log, Logger

CONTEXT = 16
DEVELOPMENT, HELD_OUT = 0, 10
"""Seeds; that of the held-out models."""
MakeOptimizer = Callable[[Iterable[nn.Parameter], float], Optimizer]


class Run(NamedTuple):
    """One training: ``kind`` is the schedule of the rate, ``times`` the right rate at its peak (of ``creep``:
    at its start)."""

    model: str
    kind: str
    times: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.kind}-x{self.times:g}-s{self.seed}"

    @property
    def healthy(self) -> bool:
        return self.times == 1


class GPT(nn.Module):
    """Two blocks of width 32 on 16 characters."""

    def __init__(self, *, norm_first: bool = True) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCABULARY, 32), nn.Linear(32, VOCABULARY)
        self.places, self.norm = nn.Parameter(torch.zeros(CONTEXT, 32)), nn.LayerNorm(32)
        block = nn.TransformerEncoderLayer(
            32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places
        return self.head(self.norm(self.blocks(x, mask=self.mask, is_causal=True)))


class GRU(nn.Module):
    """A layer of GRU on text."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.tokens(tokens))[0])


class ViT(nn.Module):
    """Two blocks of width 32 on the 16 patches of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Linear(4, 32), nn.Linear(32, 10)
        self.places, self.norm = nn.Parameter(torch.zeros(16, 32)), nn.LayerNorm(32)
        block = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        return self.head(self.norm(self.blocks(self.patch(patches) + self.places)).mean(1))


def mlp(
    depth: int, activation: type[nn.Module] = nn.ReLU, norm: type[nn.Module] = nn.Identity
) -> nn.Sequential:
    """Hidden layers of 64, with He's or Glorot's initialization."""
    start = nn.init.kaiming_normal_ if activation is nn.ReLU else nn.init.xavier_normal_
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([64] * (depth + 1)):
        linear = nn.Linear(inputs, outputs)
        start(linear.weight)
        layers += [linear, *([] if norm is nn.Identity else [norm(outputs)]), activation()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def models() -> dict[str, tuple[Task, MakeOptimizer, float]]:
    """Task, optimizer and right rate, by name."""
    digits, momentum = tasks()["MLP, Adam"].task, partial(SGD, momentum=0.9)
    text = replace(survival_tasks()["gpt"], batch_size=8)
    short = replace(text, batch=partial(_short, text.batch))
    return {
        "gpts": (replace(short, build=GPT), AdamW, 5e-3),
        "gptpost": (replace(short, build=partial(GPT, norm_first=False)), AdamW, 2e-3),
        "deep": (replace(digits, build=partial(mlp, 12)), Adam, 1e-3),
        "deepsgd": (replace(digits, build=partial(mlp, 12)), momentum, 1e-2),
        "lstm": (replace(text, build=LSTM), momentum, 3.0),
        "lstmadam": (replace(text, build=LSTM), Adam, 1e-2),
        "cnn": (tasks()["CNN, SGD"].task, momentum, 0.1),
        "mlp": (digits, Adam, 0.01),
        "gru": (replace(text, build=GRU), Adam, 1e-2),
        "tanh": (replace(digits, build=partial(mlp, 7, nn.Tanh)), momentum, 3e-2),
        "vit": (replace(digits, build=ViT), AdamW, 3e-3),
        "lnrms": (replace(digits, build=partial(mlp, 4, norm=nn.LayerNorm)), RMSprop, 1e-3),
    }


def runs(*, quick: bool = False) -> list[Run]:
    """All runs, those of the development seeds first."""
    if quick:
        return [Run("mlp", "ramp", 30, 0, 400), Run("mlp", "hramp", 1, 0, 500)]
    known = ["gpts", "gptpost", "deep", "deepsgd", "lstm", "lstmadam", "cnn", "mlp"]
    found = [run for model in known for run in _each(model, DEVELOPMENT)]
    return found + [run for model in ("gru", "tanh", "vit", "lnrms") for run in _each(model, HELD_OUT)]


def _each(model: str, seed: int) -> list[Run]:
    exploding = [Run(model, "creep", 0.3, seed, 600), Run(model, "ramp", 30, seed, 400)]
    return [*exploding, Run(model, "hramp", 1, seed, 500), Run(model, "const", 1, seed, 500)]


class Updates(Protocol):
    """Makes the updates of a training, and has its log."""

    def update(self, loss: Tensor) -> None: ...
    def log(self, name: str) -> Log: ...


def train(run: Run, updates: Callable[..., Updates] = Logger) -> Log:
    """Trains, until the loss is not finite or far above its start."""
    task, optimizer_of, right = models()[run.model]
    torch.manual_seed(run.seed)
    model, data = task.build(), torch.Generator().manual_seed(1000 + run.seed)
    optimizer = optimizer_of(model.parameters(), right * run.times)
    batch: list[Batch] = []
    batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    logger = updates(model, optimizer, again=None if batch_norm else lambda: task.loss(model, batch[-1]))
    first = math.inf
    for step in range(run.steps):
        optimizer.param_groups[0]["lr"] = right * run.times * _schedule(run, step)
        ids = torch.randint(task.samples, (task.batch_size,), generator=data)
        batch[:] = [task.batch(ids)]
        loss = task.loss(model, batch[0])
        first = min(first, float(loss.detach())) if step == 0 else first
        if not float(loss.detach()) < 1e6 * first:
            break
        logger.update(loss)
    return logger.log(run.name)


def zoo(seeds: Iterable[int], folder: Path) -> None:
    """Logs the healthy trainings of the guard's tests."""
    sys.path.append(str(Path(__file__).parents[3]))
    from tests.guard.healthy.further import FURTHER
    from tests.guard.healthy.trainings import TRAININGS

    for training in (*TRAININGS, *FURTHER):
        for seed in seeds:
            if (folder / f"zoo_{training.__name__}-s{seed}-0.npz").exists():
                continue
            loggers: list[Logger] = []

            def wrap(*parts: Any, scheduler: Any = None, made: list[Logger] = loggers) -> Any:
                made.append(Logger(*parts[:2], *(parts[2:] or (scheduler,))))
                return made[-1].update

            training(seed, wrap)
            for number, logger in enumerate(loggers):
                name = f"zoo_{training.__name__}-s{seed}-{number}"
                logger.log(name).save(folder / f"{name}.npz")


def _short(batch: Callable[[Tensor], Batch], ids: Tensor) -> Batch:
    inputs, labels, weights = batch(ids)
    return inputs[:, :CONTEXT].contiguous(), labels[:, :CONTEXT].contiguous(), weights


def _schedule(run: Run, step: int) -> float:
    """What the rate is multiplied by."""
    return {
        "const": 1.0,
        "creep": 1.01 ** max(0, step - 100),
        "ramp": (step + 1) / run.steps,
        "hramp": min(1.0, (step + 1) / 300),
    }[run.kind]
