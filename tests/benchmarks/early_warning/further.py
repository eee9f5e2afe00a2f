"""Six more networks that explode: neither the rule nor its constants were ever measured on them before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from survival.tasks import VOCABULARY, Batch, Task
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW

from early_warning.networks import MakeOptimizer, Squares, data


class Scan(nn.Module):
    """A selective scan over 16 characters, h = a(x) h + (1 - a(x)) b(x), as in Mamba, with a gate."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.selects, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        keep, new, gate = self.selects(x).chunk(3, -1)
        keep, states = torch.sigmoid(keep + 1), [torch.zeros_like(new[:, 0])]
        for place in range(x.shape[1]):
            states.append(keep[:, place] * states[-1] + (1 - keep[:, place]) * new[:, place])
        return self.head(x + self.out(torch.stack(states[1:], 1) * functional.silu(gate)))


class UNet(nn.Module):
    """Down and up again with GroupNorm and a skip connection, on 8 x 8 pixels: takes noise away."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = self._part(1, 16), self._part(16, 32, 2)
        self.middle, self.up = self._part(32, 32), nn.Upsample(scale_factor=2)
        self.last = nn.Sequential(self._part(48, 16), nn.Conv2d(16, 1, 3, padding=1))

    @staticmethod
    def _part(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(4, outputs), nn.SiLU())

    def forward(self, pixels: Tensor) -> Tensor:
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
        first = self.first((pixels + 0.5 * noise).view(-1, 1, 8, 8))
        inner = self.up(self.middle(self.down(first)))
        return self.last(torch.cat([first, inner], 1)).flatten(1)


class Experts(nn.Module):
    """Two layers of four experts; each digit goes to the two that the router prefers."""

    def __init__(self, width: int = 64, experts: int = 4) -> None:
        super().__init__()
        self.routers = nn.ModuleList(nn.Linear(width, experts) for _ in range(2))
        self.experts = nn.ModuleList(
            nn.ModuleList(self._expert(width) for _ in range(experts)) for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    @staticmethod
    def _expert(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        for router, experts in zip(self.routers, self.experts, strict=True):
            best, which = router(x).topk(2)
            shares = torch.zeros(len(x), len(experts)).scatter(1, which, best.softmax(1))
            x = x + torch.stack([expert(x) for expert in experts], 1).mul(shares[:, :, None]).sum(1)
        return self.head(x)


class LayerScale(nn.Module):
    """Four blocks of a ViT whose branches are scaled by weights that begin at 0.1, in bf16."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch, self.head = nn.Linear(4, width), nn.Linear(width, 10)
        self.places = nn.Parameter(torch.zeros(16, width))
        self.attend = nn.ModuleList(nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(4))
        self.think = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
            for _ in range(4)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.scales = nn.Parameter(torch.full((4, 2, width), 0.1))

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.patch(images.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)) + self.places
            for attend, think, norm, (one, two) in zip(
                self.attend, self.think, self.norms, self.scales, strict=False
            ):
                inner = norm(x)
                x = x + one * attend(inner, inner, inner, need_weights=False)[0]
                x = x + two * think(x)
            return self.head(self.norms[-1](x).mean(1)).float()


class Siamese(Task):
    """Pulls the embeddings of equal digits together, and pushes others apart."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The contrastive loss of all pairs of a batch, with a margin of 1 (Hadsell et al. 2006)."""
        embedded, labels = model(batch[0]), batch[1]
        first, second = torch.triu_indices(len(labels), len(labels), 1)
        distance = (embedded[first] - embedded[second]).square().sum(1).add(1e-6).sqrt()
        equal = labels[first] == labels[second]
        return torch.where(equal, distance.square(), (1 - distance).clamp(min=0).square()).mean()


def decoder() -> nn.Module:
    """64 pixels through 16 numbers, and back by transposed convolutions."""
    return nn.Sequential(
        nn.Linear(64, 16),
        nn.Linear(16, 128),
        nn.ReLU(),
        nn.Unflatten(1, (32, 2, 2)),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
        nn.Flatten(),
    )


def branch() -> nn.Module:
    """The network of a siamese pair."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


def further() -> dict[str, tuple[Task, MakeOptimizer, float]]:
    """Task, optimizer and right rate, by name: of the rates 1, 2 and 5 times a power of ten the one with the
    lowest loss after 300 steps."""
    digits, _, short = data()

    def other(kind: type[Task], build: Callable[[], nn.Module]) -> Task:
        return replace(kind(**{name: getattr(digits, name) for name in Task.__slots__}), build=build)

    return {
        "scan": (replace(short, build=Scan), Adam, 1e-2),
        "unet": (other(Squares, UNet), Adam, 5e-3),
        "experts": (replace(digits, build=Experts), AdamW, 2e-3),
        "layerscale": (replace(digits, build=LayerScale), AdamW, 5e-3),
        "decoder": (other(Squares, decoder), partial(SGD, momentum=0.9), 1.0),
        "siamese": (other(Siamese, branch), Adam, 1e-2),
    }
