"""The networks that explode, with data, optimizer and right rate: the chosen half and the one held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from rates.tasks import LSTM, tasks
from survival.tasks import VOCABULARY, WIDTH, Batch, Task
from survival.tasks import tasks as survival_tasks
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

CONTEXT = 16
TEXT = ("gpts", "gptpost", "gptbf16", "lstm", "lstmadam", "gru", "rnnlong", "scan")
"""Networks that predict characters."""
MakeOptimizer = Callable[[Iterable[nn.Parameter], float], Optimizer]


class GPT(nn.Module):
    """Two blocks of width 32 on 16 characters."""

    def __init__(self, *, norm_first: bool = True, bf16: bool = False) -> None:
        super().__init__()
        self.bf16 = bf16
        self.tokens, self.head = nn.Embedding(VOCABULARY, 32), nn.Linear(32, VOCABULARY)
        self.places, self.norm = nn.Parameter(torch.zeros(CONTEXT, 32)), nn.LayerNorm(32)
        block = nn.TransformerEncoderLayer(
            32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            x = self.tokens(tokens) + self.places
            return self.head(self.norm(self.blocks(x, mask=self.mask, is_causal=True))).float()


class Recurrent(nn.Module):
    """A recurrent layer on text."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.layer = layer(WIDTH, WIDTH, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.tokens(tokens))[0])


class ViT(nn.Module):
    """Blocks of width 32 on the 16 patches of a digit."""

    def __init__(self, blocks: int = 2, *, norm_first: bool = True) -> None:
        super().__init__()
        self.patch, self.head = nn.Linear(4, 32), nn.Linear(32, 10)
        self.places, self.norm = nn.Parameter(torch.zeros(16, 32)), nn.LayerNorm(32)
        block = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.blocks = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        return self.head(self.norm(self.blocks(self.patch(patches) + self.places)).mean(1))


class Residual(nn.Module):
    """Blocks x + W2 relu(W1 x) of width 64, without normalization."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)) for _ in range(blocks)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Squares(Task):
    """The task with the squared error of its inputs: an autoencoder."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[0])


def plain_cnn() -> nn.Module:
    """Three convolutions without normalization."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))


def autoencoder() -> nn.Module:
    """64 pixels through 16 numbers and back."""
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64)
    )


def in_fp16(depth: int) -> nn.Module:
    """An MLP whose gradients pass through float16, not scaled: the small ones become zero."""
    model = mlp(depth)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient.half().float())
    return model


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
    return chosen() | held_out()


def chosen() -> dict[str, tuple[Task, MakeOptimizer, float]]:
    """Signals and constants were chosen on these."""
    digits, text, short = data()
    momentum = partial(SGD, momentum=0.9)
    return {
        "gpts": (replace(short, build=GPT), AdamW, 5e-3),
        "gptpost": (replace(short, build=partial(GPT, norm_first=False)), AdamW, 2e-3),
        "deep": (replace(digits, build=partial(mlp, 12)), Adam, 1e-3),
        "deepsgd": (replace(digits, build=partial(mlp, 12)), momentum, 1e-2),
        "lstm": (replace(text, build=LSTM), momentum, 3.0),
        "lstmadam": (replace(text, build=LSTM), Adam, 1e-2),
        "cnn": (tasks()["CNN, SGD"].task, momentum, 0.1),
        "mlp": (digits, Adam, 0.01),
        "gru": (replace(text, build=partial(Recurrent, nn.GRU)), Adam, 1e-2),
        "tanh": (replace(digits, build=partial(mlp, 7, nn.Tanh)), momentum, 3e-2),
        "vit": (replace(digits, build=ViT), AdamW, 3e-3),
        "lnrms": (replace(digits, build=partial(mlp, 4, norm=nn.LayerNorm)), RMSprop, 1e-3),
    }


def held_out() -> dict[str, tuple[Task, MakeOptimizer, float]]:
    """These had no part in any choice."""
    digits, text, short = data()
    whole = digits.batch(torch.arange(256))
    squares = Squares(**{name: getattr(digits, name) for name in Task.__slots__})
    return {
        "rnnlong": (
            replace(text, build=partial(Recurrent, nn.RNN), batch=partial(_long, text.batch)),
            Adam,
            3e-3,
        ),
        "gptbf16": (replace(short, build=partial(GPT, bf16=True)), AdamW, 5e-3),
        "postenc": (replace(digits, build=partial(ViT, 4, norm_first=False)), Adam, 3e-3),
        "plaincnn": (replace(digits, build=plain_cnn), partial(SGD, momentum=0.9), 0.03),
        "mom99": (replace(digits, build=partial(mlp, 4)), partial(SGD, momentum=0.99), 3e-3),
        "tinyeps": (replace(digits, build=partial(mlp, 6)), partial(Adam, eps=1e-15), 3e-3),
        "wholebatch": (replace(digits, build=partial(mlp, 4, nn.Tanh), batch=lambda _: whole), Adam, 3e-3),
        "fp16": (replace(digits, build=partial(in_fp16, 6)), partial(Adam, eps=1e-15), 3e-3),
        "residual": (replace(digits, build=partial(Residual, 8)), Adam, 1e-3),
        "auto": (replace(squares, build=autoencoder), partial(SGD, momentum=0.9), 1.0),
    }


def data() -> tuple[Task, Task, Task]:
    """Digits, text, and text in short windows."""
    text = replace(survival_tasks()["gpt"], batch_size=8)
    return tasks()["MLP, Adam"].task, text, replace(text, batch=partial(_short, text.batch))


def _short(batch: Callable[[Tensor], Batch], ids: Tensor) -> Batch:
    inputs, labels, weights = batch(ids)
    return inputs[:, :CONTEXT].contiguous(), labels[:, :CONTEXT].contiguous(), weights


def _long(batch: Callable[[Tensor], Batch], ids: Tensor) -> Batch:
    """Three windows in a row."""
    parts = [batch(ids + place) for place in range(3)]
    return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1), parts[0][2]
