"""Every signal of a training, step by step, in one file."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from guard.decide.climbing import layers

EVERY = 5
"""Steps between two looks at activations, attention and the batch's own loss after its step."""
WINDOW = 25
"""Steps between two looks of the guard at the distance of the weights."""
COLUMNS = ("grad", "weight", "curvature", "moved", "cosine", "preconditioned")
"""Of each parameter: |g|^2, |w|^2, <g - g', dw>, |dw|^2, <g, g'>, dw sqrt(v) dw, with g' the gradient and dw
the movement of the step before, and v Adam's second moment."""

Floats = NDArray[np.float64]


class Log(NamedTuple):
    """One run of a network with so many ``layers``.

    ``loss``, ``lr`` and ``far`` [steps], the last of which is the mean distance of one of the last ``WINDOW``
    steps over the norm of the weights; ``cols`` [steps, parameters, COLUMNS]; ``acts`` [looks, akeys] at the
    steps ``at``; ``rho`` [looks, (step, loss, loss of the same batch after it, <g, dw>)].
    """

    name: str
    layers: int
    loss: Floats
    lr: Floats
    far: Floats
    cols: Floats
    at: Floats
    akeys: list[str]
    acts: Floats
    rho: Floats

    @classmethod
    def read(cls, path: Path) -> Log:
        with np.load(path) as stored:
            keys = [str(key) for key in stored["akeys"]]
            values = {name: stored[name] for name in cls._fields if name not in ("name", "akeys")}
        return cls(name=path.stem, akeys=keys, **{**values, "layers": int(values["layers"])})

    def save(self, path: Path) -> None:
        values = {**self._asdict(), "akeys": np.array(self.akeys)}
        del values["name"]
        np.savez_compressed(path, **values)


class Logger:
    """Makes the updates of a model, and notes what each shows.

    Args:
        again: the loss of the last batch, computed once more; None where that is not possible.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: Any = None,
        again: Callable[[], Tensor] | None = None,
    ) -> None:
        self._model, self._optimizer, self._scheduler, self._again = model, optimizer, scheduler, again
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        sizes = [p.numel() for p in self._parameters]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._sizes = np.array(sizes)
        self._before: tuple[Floats, Floats] | None = None
        self._present: dict[str, float] = {}
        self._rows: list[tuple[float, float, float, Floats]] = []
        self._looks: list[tuple[int, dict[str, float]]] = []
        self._own: list[tuple[float, ...]] = []
        self._weights: deque[Floats] = deque(maxlen=WINDOW + 1)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.RNNBase | nn.LayerNorm):
                module.register_forward_hook(lambda _m, _x, y, name=name: self._look(name, y))
            if isinstance(module, nn.MultiheadAttention):
                module.register_forward_pre_hook(
                    lambda m, x, name=name: self._look_at_attention(name, m, x[0])
                )

    @property
    def steps(self) -> int:
        return len(self._rows)

    def _due(self) -> bool:
        return self._model.training and self.steps % EVERY == 0

    @torch.no_grad()
    def _look(self, name: str, output: Any) -> None:
        if not self._due():
            return
        values = (output[0] if isinstance(output, tuple) else output).float()
        centred = values - values.mean()
        variance = float(centred.square().mean())
        self._present |= {
            f"{name}|max": float(values.abs().max()),
            f"{name}|kurt": float(centred.pow(4).mean()) / (variance**2 + 1e-30),
        }

    @torch.no_grad()
    def _look_at_attention(self, name: str, module: nn.MultiheadAttention, inputs: Tensor) -> None:
        if not self._due():
            return
        projected = functional.linear(inputs, module.in_proj_weight, module.in_proj_bias)
        query, key, _ = (
            part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, -1)
        )
        self._present[f"{name}|logit"] = float((query @ key.mT).abs().max() / math.sqrt(query.shape[-1]))

    def update(self, loss: Tensor) -> None:
        """Backward and step; notes everything between them."""
        self._optimizer.zero_grad()
        loss.backward()
        gradient = self._flat(
            [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        )
        weight = self._flat(self._parameters)
        due, step, value = self._due(), self.steps, float(loss.detach())
        if due:
            self._looks.append((step, self._present))
            self._present = {}
        rate = self._optimizer.param_groups[0]["lr"]
        self._rows.append((value, rate, self._far(weight), self._columns(gradient, weight)))
        self._before = gradient, weight
        self._optimizer.step()
        if due and self._again is not None:
            moved = self._flat(self._parameters) - weight
            with torch.no_grad():
                self._own.append((step, value, float(self._again()), float(gradient @ moved)))
        if self._scheduler is not None:
            self._scheduler.step()

    def _columns(self, gradient: Floats, weight: Floats) -> Floats:
        unknown = np.full(len(self._sizes), np.nan)
        found = dict.fromkeys(COLUMNS, unknown)
        found |= {"grad": self._sum(gradient**2), "weight": self._sum(weight**2)}
        if self._before is not None:
            moved, turned = weight - self._before[1], gradient - self._before[0]
            found |= {"curvature": self._sum(turned * moved), "moved": self._sum(moved**2)}
            found["cosine"] = self._sum(gradient * self._before[0])
            found |= self._by_second_moment(moved)
        return np.stack([found[name] for name in COLUMNS], axis=1)

    def _by_second_moment(self, moved: Floats) -> dict[str, Floats]:
        group, states = self._optimizer.param_groups[0], [self._optimizer.state[p] for p in self._parameters]
        if "betas" not in group:
            return {}
        unbiased = 1 - group["betas"][1] ** float(states[0]["step"])
        second = self._flat([state["exp_avg_sq"] for state in states]) / unbiased
        return {"preconditioned": self._sum(moved**2 * (np.sqrt(second) + group["eps"]))}

    def _far(self, weight: Floats) -> float:
        self._weights.append(weight)
        if len(self._weights) <= WINDOW:
            return math.nan
        return float(np.linalg.norm(weight - self._weights[0]) / WINDOW / np.linalg.norm(weight))

    def _sum(self, values: Floats) -> Floats:
        return np.add.reduceat(values, self._starts)

    @staticmethod
    @torch.no_grad()
    def _flat(tensors: list[Any]) -> Floats:
        return torch.cat([tensor.detach().flatten().double() for tensor in tensors]).numpy()

    def log(self, name: str) -> Log:
        """What was noted."""
        losses, rates, far, columns = zip(*self._rows, strict=True)
        keys = sorted({key for _, look in self._looks for key in look})
        looks = [[look.get(key, math.nan) for key in keys] for _, look in self._looks]
        at = np.array([step for step, _ in self._looks], dtype=float)
        return Log(
            name,
            layers(self._parameters),
            np.array(losses),
            np.array(rates),
            np.array(far),
            np.array(columns),
            at,
            keys,
            np.array(looks),
            np.array(self._own),
        )
