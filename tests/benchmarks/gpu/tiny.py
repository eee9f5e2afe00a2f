"""A small loop under the guard, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from guard import GradientGuard, GuardConfig

BATCH, WIDTH = 32, 64
BARE = "no guard"
NEVER: dict[str, Any] = {"every_steps": 10**9}


def tiny_model(device: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(WIDTH, 256), nn.BatchNorm1d(256), nn.Tanh(), nn.Linear(256, 8)
    return nn.Sequential(*layers).to(device, dtype)


class Loop:
    """One model, fused AdamW and a guard in ``mode``; none in mode ``no guard``."""

    def __init__(
        self,
        device: str,
        mode: str,
        config: dict[str, Any] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        tensor_rate: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        self.model = tiny_model(device, dtype) if model is None else model
        rate = torch.tensor(1e-3, device=device) if tensor_rate else 1e-3
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, fused=True)
        self.batch = torch.randn(BATCH, WIDTH, device=device, dtype=dtype)
        self.guard: GradientGuard | None = None
        if mode != BARE:
            settings = {"snapshot": NEVER, "update_norm": "off", **(config or {}), "mode": mode}
            self.guard = GradientGuard(self.model, self.optimizer, GuardConfig.model_validate(settings))

    def step(self, batch: Tensor | None = None) -> Any:
        """One step; the guard's report, if there is a guard."""
        self.optimizer.zero_grad()
        loss = self.model(self.batch if batch is None else batch).float().square().mean()
        if self.guard is not None:
            self.guard.backward(loss)
            return self.guard.step()
        loss.backward()
        return self.optimizer.step()

    def weights(self) -> list[Tensor]:
        """Copies."""
        return [parameter.detach().clone() for parameter in self.model.parameters()]
