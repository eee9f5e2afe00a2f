"""Ten trainings that had no part in the choice of any constant: other networks, losses, data and optimizers.

Their best rates were looked for in the same way, without any method.
"""

from __future__ import annotations

import io
import sysconfig
import token
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path

import torch
from survival.tasks import CONTEXT, VOCABULARY, Batch, Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from rates.tasks import TRAIN_IMAGES, MakeOptimizer, RateTask, digits

WIDTH = 32
ROWS, FEATURES = 2048, 16
HELD_OUT = 1000
SOURCES = (
    *("argparse", "decimal", "doctest", "inspect", "ipaddress"),
    *("mailbox", "pathlib", "pdb", "tarfile", "typing"),
)

Build = Callable[[], nn.Module]
Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Unseen(Task):
    """A task with a loss of its own."""

    criterion: Criterion

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.criterion(model(batch[0]), batch[1])


class Lion(Optimizer):
    """Chen et al. (2023): the sign of a mixture of gradient and momentum."""

    def __init__(self, parameters: object, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                weight.sub_(group["lr"] * (0.9 * mean + 0.1 * weight.grad).sign())
                mean.lerp_(weight.grad, 0.01)


class Residual(nn.Module):
    """Adds what its body makes of its input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Encoder(nn.Module):
    """Transformer blocks over tokens or patches; the mean over places is classified."""

    def __init__(self, embed: nn.Module, places: int, *, norm_first: bool, width: int = WIDTH) -> None:
        super().__init__()
        self.embed, self.places = embed, nn.Parameter(0.02 * torch.randn(places, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x) + self.places).mean(1))


class Tagger(nn.Module):
    """A GRU names the kind of token that each letter belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(VOCABULARY, WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, len(token.tok_name))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.letters(x))[0]).flatten(0, 1)


def unseen() -> dict[str, RateTask]:
    """All by name."""
    nesterov = partial(SGD, momentum=0.9, nesterov=True)
    return {
        "ViT, AdamW": _digits(vit, 0.01, AdamW),
        "ViT, Lion": _digits(vit, 3e-3, Lion),
        "residual MLP, Nesterov": _digits(residual_mlp, 0.03, nesterov),
        "GroupNorm CNN, AdamW": _digits(group_norm_cnn, 0.01, AdamW),
        "CNN without norm, RMSprop": _digits(plain_cnn, 3e-3, RMSprop),
        "autoencoder, NAdam": _digits(autoencoder, 0.01, NAdam, to_itself=True),
        "GRU tagger, Adam": _text(Tagger, 0.03, Adam, tags=True),
        "post-LN encoder, Adam": _text(post_ln, 1e-3, Adam),
        "bag of words, Adagrad": _text(bag_of_words, 3.0, Adagrad),
        "heavy tails, Adagrad": _regression(0.1, Adagrad),
    }


def vit() -> nn.Module:
    """Patches of 2 x 2 of a digit."""
    patches = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, WIDTH, 2, 2), nn.Flatten(2), Transpose())
    return Encoder(patches, 16, norm_first=True)


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def post_ln() -> nn.Module:
    return Encoder(nn.Embedding(VOCABULARY, WIDTH), CONTEXT, norm_first=False)


def residual_mlp() -> nn.Module:
    bodies = [nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)) for _ in range(6)]
    return nn.Sequential(*map(Residual, bodies), nn.Linear(64, 10))


def group_norm_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def plain_cnn() -> nn.Module:
    first = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def autoencoder() -> nn.Module:
    encoder = [nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 12)]
    return nn.Sequential(*encoder, nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 64))


def bag_of_words() -> nn.Module:
    """A weight for each class and letter."""
    return nn.EmbeddingBag(VOCABULARY, 10, mode="mean")


def regression_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0)
    )


def _digits(build: Build, lr: float, optimizer: MakeOptimizer, *, to_itself: bool = False) -> RateTask:
    images, labels = (torch.cat(parts) for parts in zip(*(part[:2] for part in digits()), strict=True))
    if to_itself:
        return _task(build, lr, optimizer, (images, images), TRAIN_IMAGES, F.mse_loss)
    return _task(build, lr, optimizer, (images, labels), TRAIN_IMAGES)


def _text(build: Build, lr: float, optimizer: MakeOptimizer, *, tags: bool = False) -> RateTask:
    letters, kinds, sources = _sources()
    return _task(build, lr, optimizer, (letters, kinds if tags else sources), len(letters) - HELD_OUT)


def _regression(lr: float, optimizer: MakeOptimizer) -> RateTask:
    """Inputs and noise without a finite fourth moment (Student's t, 3 degrees of freedom)."""
    draw = torch.Generator().manual_seed(0)

    def heavy(*shape: int) -> Tensor:
        normal, squares = torch.randn(*shape, generator=draw), torch.randn(3, *shape, generator=draw).square()
        return normal / squares.mean(0).sqrt()

    inputs = heavy(ROWS + HELD_OUT, FEATURES)
    directions = torch.randn(FEATURES, 4, generator=draw) / FEATURES**0.5
    targets = (inputs @ directions).tanh().sum(1) + 0.3 * heavy(len(inputs))
    return _task(regression_mlp, lr, optimizer, (inputs, targets), ROWS, F.mse_loss)


@cache
def _sources() -> tuple[Tensor, Tensor, Tensor]:
    """Windows of ten sources of the standard library in a fixed order: letters, the kind of token that each
    belongs to, and which source it is."""
    windows = []
    for number, name in enumerate(SOURCES):
        text = (
            (Path(sysconfig.get_path("stdlib")) / f"{name}.py")
            .read_text()
            .encode("ascii", "replace")
            .decode()
        )
        starts = [0, *accumulate(len(line) for line in text.splitlines(keepends=True))]
        letters = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
        kinds = torch.zeros_like(letters)
        for each in tokenize.generate_tokens(io.StringIO(text).readline):
            first, last = (starts[row - 1] + column for row, column in (each.start, each.end))
            kinds[first:last] = each.exact_type
        rows = torch.stack([letters, kinds, torch.full_like(letters, number)])
        windows.append(rows[:, : len(text) // CONTEXT * CONTEXT].unflatten(1, (-1, CONTEXT)))
    shuffled = torch.cat(windows, 1)
    letters, kinds, sources = shuffled[
        :, torch.randperm(shuffled.shape[1], generator=torch.Generator().manual_seed(0))
    ]
    return letters, kinds, sources[:, 0]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels.flatten())


def _task(
    build: Build,
    lr: float,
    optimizer: MakeOptimizer,
    data: tuple[Tensor, Tensor],
    train: int,
    criterion: Criterion = _cross_entropy,
) -> RateTask:
    """The first ``train`` samples are trained on, the others held out."""
    inputs, targets = data

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        return float(criterion(model.eval()(inputs[train:]), targets[train:]))

    task = Unseen(
        name=build.__name__,
        build=build,
        batch=lambda ids: (inputs[ids], targets[ids], torch.ones(len(ids))),
        score=score,
        samples=train,
        lr=lr,
        batch_size=32,
        layer="*",
        buffers=None,
        criterion=criterion,
    )
    return RateTask(task, optimizer)
