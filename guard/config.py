"""The configuration of the guard: one model. A part is defined beside what it configures, or here where that
needs torch: whoever only reads a spec does not wait for it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from guard.base import Config
from guard.clips.config import ClipConfig
from guard.decide import BudgetConfig
from guard.detect import DetectConfig
from guard.shares import SharesConfig


class SnapshotConfig(Config):
    """How often a snapshot is taken, how many are kept, and when one counts as healthy."""

    every_steps: PositiveInt = 50
    """Optimizer steps between snapshots. A rollback repeats at most about this many."""

    keep: int = Field(default=2, ge=2, le=16)
    """Snapshots held; each costs as much memory as the model and its optimizer."""

    clean_steps: PositiveInt = 2
    """Clean steps that must follow a snapshot before it is a place to return to."""

    place: Literal["device", "host"] = "device"
    """Where the snapshots of a model on a GPU are: in its own memory, or pinned in the ``host``'s, where they
    are copied while the next forward and backward run. Then change no weight between two steps yourself."""


class RecoveryConfig(Config):
    """The calm after a rollback. Every part fades to nothing over ``cooldown_steps``."""

    lr_backoff: float = Field(default=0.5, gt=0, le=1)
    """The learning rate is multiplied with this; again with each rollback during a cooldown."""

    weight_decay_factor: float = Field(default=2.0, ge=1)
    """The optimizer's own weight decay is multiplied with this."""

    anchor_l2: float = Field(default=0.01, ge=0)
    """Strength of an L2 pull toward the weights that were returned to (decoupled, times learning rate)."""

    l1: float = Field(default=0.0, ge=0)
    """Strength of a decoupled L1 penalty (times learning rate)."""

    cooldown_steps: int = Field(default=200, ge=0)
    """Optimizer steps until everything is as before."""

    data: Literal["advance", "replay"] = "advance"
    """``advance`` moves on past the data that was rewound; ``replay`` feeds it again."""


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
