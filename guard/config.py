"""The configuration of the guard: one model, each part owned by the module that it configures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from guard.base import Config
from guard.clips import ClipConfig
from guard.decide import BudgetConfig
from guard.detect import DetectConfig
from guard.recover import RecoveryConfig
from guard.shares import SharesConfig
from guard.snapshot import SnapshotConfig


class GuardConfig(Config):
    """What the guard watches and how far it may go; the defaults suit a run nobody has tuned yet."""

    mode: Literal["exact", "deferred", "shadow", "off"] = "exact"
    """``exact`` decides before each optimizer step. ``deferred`` leaves clipping and skipping to a fused
    optimizer and reads what happened one step later, so that the host never waits for the device. ``shadow``
    watches and reports what it would have done; ``off`` is a bare loop."""

    clip: ClipConfig = Field(default_factory=ClipConfig)
    """Clipping."""

    detect: DetectConfig = Field(default_factory=DetectConfig)
    """The spike detector."""

    on_suspect: Literal["skip", "clip"] = "skip"
    """A single suspect step is skipped, or applied with its gradient clipped to the recent norm."""

    snapshot: SnapshotConfig = Field(default_factory=SnapshotConfig)
    """Healthy states kept in memory."""

    recovery: RecoveryConfig = Field(default_factory=RecoveryConfig)
    """What changes after a rollback, and for how long."""

    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    """When skips turn into a rollback and rollbacks into a halt."""

    shares: SharesConfig = Field(default_factory=SharesConfig)
    """When a rank whose data stays bad is left out."""

    local_norm: Literal["off", "always"] | PositiveInt = "always"
    """Each rank's gradient norm before the all-reduce: never, always, or every k steps. Names the culprit."""

    local_norm_by: Literal["auto", "hooks", "comm"] = "auto"
    """How it is taken: by one hook a parameter, by DDP's communication hook, or as suits the device."""

    update_norm: Literal["off", "always"] | PositiveInt = 25
    """How far the weights move: measured never, after every step, or after every k steps (and each snapshot).
    Shows damage to weights, moments and learning rate; needs one more copy of the weights."""

    dead_steps: PositiveInt = 100
    """A layer whose gradient is exactly zero in so many steps in a row is reported as dead."""

    @property
    def acts(self) -> bool:
        """Whether the guard may change anything."""
        return self.mode in ("exact", "deferred")
