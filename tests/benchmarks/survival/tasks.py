"""What is trained: a small ResNet with BatchNorm on Fashion-MNIST, and a small GPT on Python's own sources.

Both are small enough for hundreds of runs on two cores, and large enough to have depth, normalization, and
Adam's moments to poison.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.data import load_images
from jobs.spec.data import DataSpec

TRAIN_SAMPLES, TEST_SAMPLES = 4096, 1000
CONTEXT, VOCABULARY, WIDTH, DEPTH = 32, 128, 64, 2
TEXT_BYTES = 400_000
WARMUP_STEPS = 10

Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs, labels, and a weight for each sample (1 unless a fault changed it)."""


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to train.

    Attributes:
        build: the model, made after the seed was set.
        batch: inputs, labels and weights of sample ids, int64 [N].
        score: the loss on held-out data, in nats.
        samples: to train on.
        lr: of AdamW.
        batch_size: samples of a global batch.
        layer: pattern of the parameters that are attacked.
        buffers: pattern of the buffers that are attacked; None where there are none.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[Tensor], Batch]
    score: Callable[[nn.Module], float]
    samples: int
    lr: float
    batch_size: int
    layer: str
    buffers: str | None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean weighted cross-entropy."""
        inputs, labels, weights = batch
        logits = model(inputs)
        losses = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        return (losses.view(len(weights), -1).mean(1) * weights).mean()


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut (He et al. 2015, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class GPT(nn.Module):
    """A decoder of pre-norm blocks with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        block = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, DEPTH, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.register_buffer(
            "mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places
        return self.head(self.norm(self.blocks(x, mask=self.mask, is_causal=True)))


def tasks() -> dict[str, Task]:
    """All tasks by name."""
    return {"resnet": _resnet(), "gpt": _gpt()}


def _resnet() -> Task:
    return Task(
        name="resnet",
        build=lambda: nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            Block(16, 16, 1),
            Block(16, 32, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        ),
        batch=lambda ids: _images("train", ids),
        score=lambda model: _held_out(model, _images("test", torch.arange(TEST_SAMPLES))),
        samples=TRAIN_SAMPLES,
        lr=4e-3,
        batch_size=64,
        layer="4.conv2.weight",
        buffers="4.bn2.running_var",
    )


def _gpt() -> Task:
    return Task(
        name="gpt",
        build=GPT,
        batch=lambda ids: _windows("train", ids),
        score=lambda model: _held_out(model, _windows("test", torch.arange(256))),
        samples=TEXT_BYTES * 9 // 10 // CONTEXT - 1,
        lr=4e-3,
        batch_size=32,
        layer="blocks.layers.1.linear2.weight",
        buffers=None,
    )


@cache
def _pictures() -> dict[str, tuple[Tensor, Tensor]]:
    config = DataSpec.model_validate({"train_limit": TRAIN_SAMPLES, "test_limit": TEST_SAMPLES})
    found = dict(zip(("train", "test"), load_images(config), strict=True))
    return {name: ((data.images.float() / 255 - 0.3) / 0.35, data.labels) for name, data in found.items()}


def _images(split: str, ids: Tensor) -> Batch:
    images, labels = _pictures()[split]
    ids = ids % len(images)
    return images[ids], labels[ids], torch.ones(len(ids))


@cache
def _text() -> dict[str, Tensor]:
    """The standard library's sources in the order of their names, ASCII only; the last tenth is held out."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += bytes(b for b in path.read_bytes() if b < VOCABULARY)
        if len(text) >= TEXT_BYTES:
            break
    tokens = torch.frombuffer(text[:TEXT_BYTES], dtype=torch.uint8).long()
    cut = len(tokens) * 9 // 10
    return {"train": tokens[:cut], "test": tokens[cut:]}


def _windows(split: str, ids: Tensor) -> Batch:
    tokens = _text()[split]
    places = (ids * CONTEXT).unsqueeze(1) + torch.arange(CONTEXT + 1)
    rows = tokens[places % len(tokens)]
    return rows[:, :-1], rows[:, 1:], torch.ones(len(ids))


@torch.no_grad()
def _held_out(model: nn.Module, batch: Batch) -> float:
    inputs, labels, _ = batch
    model.eval()
    logits = model(inputs).flatten(0, -2)
    model.train()
    return float(functional.cross_entropy(logits, labels.flatten()))


def as_dict(batch: Any) -> dict[str, Tensor]:
    """The batch by name, as faults address it."""
    return dict(zip(("inputs", "labels", "weights"), batch, strict=True))
