"""Muon for matrices and AdamW for all else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

_LIKE_ADAMW = "match_rms_adamw"
"""Liu et al., "Muon is Scalable for LLM Training" (2025), section 2.2: with steps as large as AdamW's, one
learning rate and one weight decay do for both."""


class MuonWithAdamW(Optimizer):
    """Steps some groups by ``torch.optim.Muon`` and the others by ``torch.optim.AdamW``.

    Groups and state are shared, as in any optimizer: a schedule, a snapshot, a checkpoint or the guard sees
    one optimizer. Muon's groups come first.

    Args:
        matrices: parameter groups of two-dimensional parameters.
        others: parameter groups of all other parameters.
        lr: of both.
        momentum: of Muon, Nesterov's.
        betas: of AdamW.
        weight_decay: of both, decoupled; a group may have its own.

    Raises:
        ValueError: there is no parameter, or a matrix is not two-dimensional.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        others: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.1,
    ) -> None:
        parts: list[Optimizer] = []
        if matrices:
            muon = Muon(
                matrices,
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                nesterov=True,
                adjust_lr_fn=_LIKE_ADAMW,
            )
            parts.append(muon)
        if others:
            parts.append(AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay, fused=True))
        self._sizes = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        self._pass_on()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Loading a state replaces groups and state."""
        super().__setstate__(state)
        self._pass_on()

    def _pass_on(self) -> None:
        first = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            part.param_groups, part.state = self.param_groups[first : first + size], self.state
            first += size

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both; ``closure`` as in any optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._pass_on()
        for part in self._parts:
            part.step()
        return loss
