"""Four kinds of bad sample, each in one batch of a healthy run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, GuardConfig, Incident, StepReport

Kind = Literal["label", "nan", "length", "garbage"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BATCH, STEPS = 64, 120
"""Samples of the global batch; attempts before the bad one."""
LENGTH, VOCABULARY, TIMES = 12, 32, 50
"""Of a text; a long one has ``TIMES`` the length."""
_TEXTS, _IMAGES = 1024, 256


class Digits:
    """8x8 digits; the bad one has another label, or one pixel that is NaN."""

    def __init__(self, kind: Kind) -> None:
        images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
        self._images, self._labels, self._kind = images.float().view(-1, 1, 8, 8) / 16, labels, kind
        self.count = _IMAGES

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(1024, 10),
        )

    def loss(self, model: nn.Module, ids: list[int], bad: int | None) -> Tensor:
        images, labels = self._images[ids], self._labels[ids].clone()
        for place, sample in enumerate(ids):
            if sample == bad and self._kind == "label":
                labels[place] = (labels[place] + 5) % 10
            elif sample == bad:
                images[place, 0, 3, 4] = float("nan")
        return functional.cross_entropy(model(images), labels)


class Texts:
    """Periodic texts, whose next token is predicted; the bad one is far longer, or of random tokens.

    The loss of a text is the sum over its tokens, as losses by sequence have it.
    """

    def __init__(self, kind: Kind) -> None:
        generator = torch.Generator().manual_seed(1)
        starts = torch.randint(VOCABULARY, (_TEXTS, 1), generator=generator)
        self._texts = (starts + (1 + starts % 3) * torch.arange(LENGTH + 1)) % VOCABULARY
        self._generator, self._kind, self.count = generator, kind, _TEXTS
        self._noise = torch.randint(VOCABULARY, (LENGTH * TIMES + 1,), generator=generator)

    def model(self) -> nn.Module:
        return _Reader()

    def loss(self, model: nn.Module, ids: list[int], bad: int | None) -> Tensor:
        texts = [self._text(sample, sample == bad) for sample in ids]
        longest = max(map(len, texts))
        tokens = torch.stack([functional.pad(text, (0, longest - len(text)), value=-1) for text in texts])
        logits = model(tokens[:, :-1].clamp(min=0))
        total = functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=-1, reduction="sum"
        )
        return total / (len(ids) * LENGTH)

    def _text(self, sample: int, bad: bool) -> Tensor:
        text = self._texts[sample]
        if bad and self._kind == "length":
            return text[:-1].repeat(TIMES)
        return self._noise[: LENGTH + 1] if bad else text


class _Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.embedding(tokens))[0])
        return logits


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: the incident of the bad batch, and the bad sample."""

    bad: int
    incident: Incident | None
    report: StepReport

    @property
    def first(self) -> bool:
        """Whether the bad sample is ranked first."""
        ranking = [] if self.incident is None else self.incident.bad_samples
        return bool(ranking) and ranking[0].sample == self.bad


def trial(kind: Kind, seed: int, config: GuardConfig | None = None, steps: int = STEPS) -> Trial:
    """Trains with healthy batches, then with one that has a bad sample, on every rank of the group."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    data = Digits(kind) if kind in ("label", "nan") else Texts(kind)
    torch.manual_seed(seed)
    model: nn.Module = data.model()
    model = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    guard = GradientGuard(model, optimizer, config or GuardConfig())
    draws = np.random.default_rng(seed)
    torch.manual_seed(100 * seed + rank)
    for step in range(steps + 1):
        batch = draws.choice(data.count, BATCH, replace=False).tolist()
        bad = batch[int(draws.integers(BATCH))] if step == steps else None
        own = batch[rank * BATCH // ranks : (rank + 1) * BATCH // ranks]

        def loss(ids: list[int] = own, bad: int | None = bad) -> Tensor:
            return data.loss(model, ids, bad)

        optimizer.zero_grad()
        guard.backward(loss())
        report = guard.step(loss, samples=own)
    return Trial(-1 if bad is None else bad, report.incident, report)
