"""Trainings that are unruly and healthy: each is a user's own loop, and returns its final metric.

A training takes a seed and ``wrap``, which makes the update of a model and its optimizer: zero the gradients,
backward, step, schedule. The metric is lower for better.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

STEPS = 600
Update = Callable[[Tensor], None]


class Wrap(Protocol):
    """Makes the update of one model."""

    def __call__(self, model: nn.Module, optimizer: Optimizer, scheduler: Any = None) -> Update: ...


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def two_samples(seed: int, wrap: Wrap) -> float:
    """Batches of two on data that can be separated: the loss is near zero, with lone rises."""
    torch.manual_seed(seed)
    x = torch.randn(256, 8)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    model = mlp(8, 32, 2)
    update = wrap(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    for _ in range(STEPS):
        rows = torch.randint(256, (2,))
        update(F.cross_entropy(model(x[rows]), y[rows]))
    return F.cross_entropy(model(x), y).item()


def heavy_tails(seed: int, wrap: Wrap) -> float:
    """Squared error on targets with noise of Student's t, 3 degrees of freedom."""
    torch.manual_seed(seed)
    x, weights = torch.randn(4096, 8), torch.randn(8, 1)
    noise = torch.distributions.StudentT(3.0).sample((4096, 1))
    model = mlp(8, 32, 1)
    update = wrap(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    for _ in range(STEPS):
        rows = torch.randint(4096, (32,))
        update(F.mse_loss(model(x[rows]), x[rows] @ weights + noise[rows]))
    return F.mse_loss(model(x), x @ weights).item()


def diffusion(seed: int, wrap: Wrap) -> float:
    """Denoising of a 2-d mixture, weighted by the signal-to-noise ratio cut at 5 (Hang et al. 2023)."""
    torch.manual_seed(seed)
    model = mlp(3, 64, 64, 2, activation=nn.SiLU)

    def loss(samples: int) -> Tensor:
        x = torch.randint(2, (samples, 1)) * 2.0 - 1.0 + 0.1 * torch.randn(samples, 2)
        t = torch.rand(samples, 1) * 0.98 + 0.01
        noise = torch.randn_like(x)
        predicted = model(torch.cat([(1 - t).sqrt() * x + t.sqrt() * noise, t], 1))
        weights = ((1 - t) / t).clamp(max=5.0)
        return (weights * (predicted - noise).square()).mean()

    update = wrap(model, torch.optim.AdamW(model.parameters(), lr=2e-3))
    for _ in range(STEPS):
        update(loss(64))
    return loss(8192).item()


def gan(seed: int, wrap: Wrap) -> float:
    """Two models against each other: neither loss falls for long."""
    torch.manual_seed(seed)
    maker, critic = mlp(4, 32, 2), mlp(2, 32, 1)
    update_maker = wrap(maker, torch.optim.Adam(maker.parameters(), lr=1e-3, betas=(0.5, 0.9)))
    update_critic = wrap(critic, torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9)))
    for _ in range(STEPS):
        real = torch.randn(64, 2) * 0.5 + torch.tensor([2.0, -1.0])
        fake = maker(torch.randn(64, 4))
        update_critic(F.softplus(critic(fake.detach())).mean() + F.softplus(-critic(real)).mean())
        update_maker(F.softplus(-critic(maker(torch.randn(64, 4)))).mean())
    return (maker(torch.randn(4096, 4)).mean(0) - torch.tensor([2.0, -1.0])).norm().item()


def policy_gradient(seed: int, wrap: Wrap) -> float:
    """REINFORCE (Williams 1992) with a baseline on a contextual bandit: the loss changes its sign."""
    torch.manual_seed(seed)
    truth = torch.randn(6, 4)
    policy = mlp(6, 32, 4)
    update = wrap(policy, torch.optim.Adam(policy.parameters(), lr=5e-3))
    mean = 0.0
    for _ in range(STEPS):
        x = torch.randn(32, 6)
        chances = torch.distributions.Categorical(logits=policy(x))
        action = chances.sample()
        reward = (x @ truth).gather(1, action[:, None])[:, 0] + torch.randn(32)
        mean += 0.05 * (float(reward.mean()) - mean)
        update(-(chances.log_prob(action) * (reward - mean)).mean())
    x = torch.randn(4096, 6)
    rewards = x @ truth
    return float((rewards.max(1).values - rewards.gather(1, policy(x).argmax(1)[:, None])[:, 0]).mean())


def curriculum(seed: int, wrap: Wrap) -> float:
    """Harder data every 150 steps: the loss rises to a new level each time."""
    torch.manual_seed(seed)
    x = torch.randn(4096, 10)
    y = torch.stack([x[:, :5].sum(1) > 0, x[:, 5:].prod(1) > 0], 1).float()
    model = mlp(10, 64, 2)
    update = wrap(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    for step in range(STEPS):
        easy = x.abs().min(1).values.argsort(descending=True)[: 512 * (1 + step // 150)]
        rows = easy[torch.randint(len(easy), (64,))]
        update(F.binary_cross_entropy_with_logits(model(x[rows]), y[rows]))
    return F.binary_cross_entropy_with_logits(model(x), y).item()


def warm_restarts(seed: int, wrap: Wrap) -> float:
    """The rate jumps from zero to its maximum every 100 steps (Loshchilov and Hutter 2016)."""
    torch.manual_seed(seed)
    x = torch.randn(2048, 16)
    y = (x[:, :4].sin().sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    update = wrap(model, optimizer, CosineAnnealingWarmRestarts(optimizer, 100))
    for _ in range(STEPS):
        rows = torch.randint(2048, (64,))
        update(F.cross_entropy(model(x[rows]), y[rows]))
    return F.cross_entropy(model.eval()(x), y).item()


def falling_elbo(seed: int, wrap: Wrap) -> float:
    """A variational autoencoder that learns its variance: the loss falls from tens through zero."""
    torch.manual_seed(seed)
    x = torch.randn(2048, 3) @ torch.randn(3, 16) + 0.05 * torch.randn(2048, 16)
    encoder, decoder = mlp(16, 64, 8), mlp(4, 64, 16)
    log_variance = nn.Parameter(torch.zeros(()))
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    model.register_parameter("log_variance", log_variance)

    def loss(rows: Tensor) -> Tensor:
        mean, spread = encoder(x[rows]).chunk(2, 1)
        decoded = decoder(mean + (spread / 2).exp() * torch.randn_like(mean))
        error = (x[rows] - decoded).square().sum(1)
        kl = 0.5 * (mean.square() + spread.exp() - spread - 1).sum(1)
        return (0.5 * (error / log_variance.exp() + 16 * log_variance) + kl).mean()

    update = wrap(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    for _ in range(STEPS):
        update(loss(torch.randint(2048, (64,))))
    return loss(torch.arange(2048)).item()


def lstm(seed: int, wrap: Wrap) -> float:
    """Characters by truncated backpropagation: the gradients are rough."""
    torch.manual_seed(seed)
    path = Path(sysconfig.get_path("stdlib")) / "argparse.py"
    text = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long() % 128
    model = nn.ModuleDict({"in": nn.Embedding(128, 32), "lstm": nn.LSTM(32, 64), "out": nn.Linear(64, 128)})
    update = wrap(model, torch.optim.Adam(model.parameters(), lr=5e-3))

    def loss(starts: Tensor) -> Tensor:
        ids = text[starts + torch.arange(33)[:, None]]
        hidden, _ = model["lstm"](model["in"](ids[:-1]))
        return F.cross_entropy(model["out"](hidden).flatten(0, 1), ids[1:].flatten())

    for _ in range(STEPS):
        update(loss(torch.randint(len(text) - 33, (8,))))
    return loss(torch.arange(0, len(text) - 33, 97)).item()


def memorised(seed: int, wrap: Wrap) -> float:
    """Random labels learnt by heart with Adam: the loss falls by orders of magnitude, and rises at times."""
    torch.manual_seed(seed)
    x, y = torch.randn(64, 16), torch.randint(4, (64,))
    model = mlp(16, 128, 128, 4)
    update = wrap(model, torch.optim.Adam(model.parameters(), lr=1e-2))
    for _ in range(STEPS):
        rows = torch.randint(64, (16,))
        update(F.cross_entropy(model(x[rows]), y[rows]))
    return float((model(x).argmax(1) != y).float().mean())


def triplet(seed: int, wrap: Wrap) -> float:
    """Triplets with a margin: many batches have a loss of exactly zero."""
    torch.manual_seed(seed)
    y = torch.randint(8, (1024,))
    x = torch.randn(8, 16)[y] * 2 + torch.randn(1024, 16)
    model = mlp(16, 64, 8)
    by_class = [torch.where(y == c)[0] for c in range(8)]

    def loss(batch: int) -> Tensor:
        a = torch.randint(1024, (batch,))
        same = torch.stack([by_class[c][torch.randint(len(by_class[c]), ())] for c in y[a].tolist()])
        other = torch.randint(1024, (batch,))
        keep = y[other] != y[a]
        embedded = (F.normalize(model(x[rows[keep]]), dim=1) for rows in (a, same, other))
        return F.triplet_margin_loss(*embedded, margin=0.2)

    update = wrap(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    for _ in range(STEPS):
        update(loss(16))
    return loss(2048).item()


class Codebook(nn.Module):
    """Vector quantization (van den Oord et al. 2017) whose unused codes are drawn again."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 8), nn.Linear(8, 16)
        self.codes: Tensor
        self.uses: Tensor
        self.register_buffer("codes", torch.randn(32, 8) * 0.1)
        self.register_buffer("uses", torch.zeros(32))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        latents = self.encoder(x)
        nearest = torch.cdist(latents, self.codes).argmin(1)
        if self.training:
            self._move(latents.detach(), nearest)
        return self.decoder(latents + (self.codes[nearest] - latents).detach())

    @torch.no_grad()
    def _move(self, latents: Tensor, nearest: Tensor) -> None:
        self.calls += 1
        self.uses.mul_(0.95).add_(torch.bincount(nearest, minlength=32), alpha=0.05)
        sums = torch.zeros_like(self.codes).index_add_(0, nearest, latents)
        counts = torch.bincount(nearest, minlength=32)[:, None]
        self.codes.copy_(
            torch.where(counts > 0, self.codes.lerp(sums / counts.clamp(min=1), 0.1), self.codes)
        )
        if self.calls % 100 == 0 and (idle := self.uses < 0.2).any():
            self.codes[idle] = latents[torch.randint(len(latents), (int(idle.sum()),))]


def codebook(seed: int, wrap: Wrap) -> float:
    """Codes jump when they are drawn again, every 100 steps."""
    torch.manual_seed(seed)
    x = torch.randn(2048, 4) @ torch.randn(4, 16)
    model = Codebook()
    update = wrap(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    for _ in range(STEPS):
        rows = torch.randint(2048, (64,))
        update(F.mse_loss(model(x[rows]), x[rows]))
    return F.mse_loss(model.eval()(x), x).item()


TRAININGS: list[Callable[[int, Wrap], float]] = [
    two_samples,
    heavy_tails,
    diffusion,
    gan,
    policy_gradient,
    curriculum,
    warm_restarts,
    falling_elbo,
    lstm,
    memorised,
    triplet,
    codebook,
]
