"""What changes after a rollback, so that the run does not explode again, and how it fades out.

The learning rate is scaled only around the optimizer's step: a scheduler, many of which compute the next
rate from the last one, never sees the scaled value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from guard.act.regularize import pull_, soft_threshold_
from guard.config import RecoveryConfig
from guard.observe.shards import locals_of


class Cooldown:
    """The fading measures after rollbacks. Its state survives a rollback: a second one is harder."""

    def __init__(self, config: RecoveryConfig, parameters: list[Tensor]) -> None:
        self._config = config
        self._parameters = parameters
        self._anchors: dict[int, Tensor] = {}
        self._level = 0
        self._remaining = 0
        self.rate_factor = 1.0
        """What the rate is multiplied by for good, since it was too high from the start."""

    def begin(self) -> None:
        """A rollback restored good weights: start the cooldown, one level harder if one is running."""
        self._level = self._level + 1 if self._remaining else 1
        self._remaining = self._config.cooldown_steps
        if self._remaining and self._config.anchor_l2:
            self._anchors = {id(p): p.detach().clone() for p in self._parameters}

    def end(self) -> None:
        """Ends it at once: it was not needed."""
        self._remaining = self._level = 0
        self._anchors = {}

    @property
    def active(self) -> bool:
        return self._remaining > 0

    @property
    def fading(self) -> float:
        """From 1 right after a rollback to 0 at the end of the cooldown."""
        return self._remaining / self._config.cooldown_steps if self.active else 0.0

    @property
    def lr_scale(self) -> float:
        """What the learning rate is multiplied by."""
        if not self.active:
            return self.rate_factor
        return self.rate_factor * self._config.lr_backoff ** (self._level * self.fading)

    def strengths(self) -> dict[str, float]:
        """The measures in force: the two scales are 1 and the two penalties 0 when nothing is."""
        if not self.active:
            return {"lr_scale": self.rate_factor, "weight_decay_scale": 1.0, "anchor_l2": 0.0, "l1": 0.0}
        config, fading = self._config, self.fading
        return {
            "lr_scale": self.lr_scale,
            "weight_decay_scale": config.weight_decay_factor**fading,
            "anchor_l2": config.anchor_l2 * fading,
            "l1": config.l1 * fading,
        }

    def plan(self, step: int, *, replays: bool = False) -> dict[str, Any]:
        """The measures in force at ``step``, the step at which they end, and how the data continues.

        Args:
            replays: the batches come again, whatever ``recovery.data`` is.
        """
        until = step + self._remaining
        scales = {**self.strengths(), "rate_factor": self.rate_factor}
        return {**scales, "until_step": until, "data": "replay" if replays else self._config.data}

    def applied_to(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """Around one ``optimizer.step()``: scaled rate and decay inside, penalties after it."""
        idle = not self.active and self.rate_factor == 1.0
        return nullcontext() if idle else self._applied_to(optimizer)

    @contextmanager
    def _applied_to(self, optimizer: Optimizer) -> Iterator[None]:
        strengths = self.strengths()
        saved = [(group["lr"], group.get("weight_decay")) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            if group["lr"] is not None:
                group["lr"] = group["lr"] * strengths["lr_scale"]
            if group.get("weight_decay"):
                group["weight_decay"] = group["weight_decay"] * strengths["weight_decay_scale"]
        try:
            yield
            for group in optimizer.param_groups if self.active else ():
                self._penalize(group["params"], float(group["lr"] or 0.0), strengths)
        finally:
            for group, (lr, weight_decay) in zip(optimizer.param_groups, saved, strict=True):
                group["lr"] = lr
                if weight_decay is not None:
                    group["weight_decay"] = weight_decay
        self._remaining = max(0, self._remaining - 1)
        if not self._remaining:
            self._level, self._anchors = 0, {}

    def _penalize(self, parameters: list[Tensor], lr: float, strengths: dict[str, float]) -> None:
        anchored = [p for p in parameters if id(p) in self._anchors]
        anchors = [self._anchors[id(p)] for p in anchored]
        pull_(locals_of(anchored), locals_of(anchors), min(1.0, lr * strengths["anchor_l2"]))
        soft_threshold_(locals_of([p for p in parameters if p.requires_grad]), lr * strengths["l1"])

    def state_dict(self) -> dict[str, Any]:
        anchors = [self._anchors[id(p)].clone() for p in self._parameters if id(p) in self._anchors]
        return {
            "level": self._level,
            "remaining": self._remaining,
            "anchors": anchors,
            "rate_factor": self.rate_factor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._level, self._remaining = int(state["level"]), int(state["remaining"])
        self.rate_factor = float(state.get("rate_factor", 1.0))
        anchored = zip(self._parameters, state["anchors"], strict=False)
        self._anchors = {id(p): anchor.detach().clone().to(p.device) for p, anchor in anchored}
