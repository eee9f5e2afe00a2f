"""Mode ``auto``: deferred where a step can be decided on the device, exact elsewhere."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.optim import Optimizer

from guard.act.fused import FusedStep
from guard.arguments import check_deferred
from guard.config import GuardConfig
from guard.errors import GuardError

log = logging.getLogger("guard")


def resolved(
    config: GuardConfig,
    optimizer: Optimizer,
    *,
    scaler: torch.amp.GradScaler | None = None,
    shards: Any = None,
    ema: Any = None,
    rank: int = 0,
) -> GuardConfig:
    """The config with ``exact`` or ``deferred`` in place of ``auto``; rank 0 logs which, and why."""
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise GuardError(f"scaler is a {type(scaler).__name__}: pass a torch.amp.GradScaler, or none")
    if config.mode != "auto":
        return config
    devices = {p.device for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    fused = FusedStep(optimizer, scaled=scaler is not None and scaler.is_enabled())
    reason = why_exact(config, fused, devices, shards=shards, ema=ema)
    if rank == 0:
        log.info("mode auto is %s", f"exact: {reason}" if reason else "deferred: the fused optimizer decides")
    return config.model_copy(update={"mode": "exact" if reason else "deferred"})


def why_exact(
    config: GuardConfig,
    fused: FusedStep,
    devices: set[torch.device],
    *,
    shards: Any = None,
    ema: Any = None,
) -> str | None:
    """What needs a step that is decided on the host; None where the device can do it.

    Args:
        fused: of the optimizer.
        devices: of the parameters that it steps.
        shards: as given to the guard.
        ema: as given to the guard; what updates it after each step would be one step early.
    """
    if {device.type for device in devices} != {"cuda"}:
        return f"the model is on {', '.join(sorted(map(str, devices)))}"
    reasons = {
        "the model is on several devices": len(devices) > 1,
        "shards= are summed by the host": bool(shards),
        "ema= is updated right after each step": ema is not None,
        "rate act returns to the start of the run": config.rate == "act",
        "attention computes batches again": config.attention.action != "off",
        "exclude_samples computes batches again": config.exclude_samples,
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    return found or _refused(config, fused, next(iter(devices)))


def _refused(config: GuardConfig, fused: FusedStep, device: torch.device) -> str | None:
    try:
        check_deferred(config, fused, device)
    except GuardError as error:
        return str(error)
    return None
