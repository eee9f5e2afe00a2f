"""The sections ``optimizer`` and ``schedule`` of a spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from guard.config import Config

_BY_OPTIMIZER: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
    "adam": {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.01},
    "muon": {"lr": 1e-3, "momentum": 0.95, "weight_decay": 0.1},
}
_ADAM_BETAS = (0.9, 0.999)
Share = Annotated[float, Field(ge=0, lt=1)]


def _by_name(field: str) -> Callable[[dict[str, Any]], float]:
    return lambda optimizer: _BY_OPTIMIZER[optimizer["name"]][field]


class OptimizerSpec(Config):
    """The optimizer. The defaults of learning rate, momentum and weight decay depend on its name."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """The algorithm. Default in the workload language: adamw. ``muon`` is Muon for the matrices inside the
    model and adamw for everything else: embeddings, the last layer, convolutions, norms, biases."""

    lr: float = Field(default_factory=_by_name("lr"), gt=0, allow_inf_nan=False)
    """Peak learning rate. Default: 0.05 for sgd, 0.001 for adam, adamw and muon."""

    momentum: float = Field(default_factory=_by_name("momentum"), ge=0, lt=1)
    """Momentum of sgd and muon. Default: 0.9 for sgd, 0.95 for muon; the others have none."""

    betas: tuple[Share, Share] = _ADAM_BETAS
    """Decay rates of the two moments of adam and adamw. Default: 0.9, 0.999; for adamw and muon in the
    workload language 0.9, 0.95."""

    weight_decay: float = Field(default_factory=_by_name("weight_decay"), ge=0, allow_inf_nan=False)
    """Weight decay: L2 for sgd and adam, decoupled for adamw and muon. Default: 0.0005 sgd, 0 adam, 0.01
    adamw, 0.1 muon; for adamw in the workload language 0.1."""

    nesterov: bool = False
    """Nesterov momentum, for sgd; muon always has it."""

    @field_validator("momentum")
    @classmethod
    def _not_adam(cls, value: float, info: ValidationInfo) -> float:
        name = info.data.get("name", "sgd")
        if value and name in ("adam", "adamw"):
            raise ValueError(f"is for sgd and muon, and optimizer.name is {name}: remove it, or set betas")
        return value

    @field_validator("nesterov")
    @classmethod
    def _only_sgd_with_momentum(cls, value: bool, info: ValidationInfo) -> bool:
        name = info.data.get("name", "sgd")
        if value and name != "sgd":
            raise ValueError(f"is for sgd, and optimizer.name is {name}: remove it")
        if value and info.data.get("momentum") == 0:
            raise ValueError("needs momentum: set optimizer.momentum above 0")
        return value

    @field_validator("betas")
    @classmethod
    def _not_sgd(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        if info.data.get("name") == "sgd" and value != _ADAM_BETAS:
            raise ValueError("is for adam and adamw, and optimizer.name is sgd: remove it, or set momentum")
        return value


class ScheduleSpec(Config):
    """The learning rate over the steps: a linear warm-up, then constant or falling."""

    name: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    """``constant``: stay at the peak. ``cosine``, ``linear``: fall along a half cosine or a line until the
    end. ``wsd`` (warm-up, stable, decay): stay at the peak, then fall along a line over the last
    ``decay_steps``."""

    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from zero to its peak; fewer than the whole run."""

    decay_steps: PositiveInt | None = None
    """Steps of the fall of ``wsd``. Default: a fifth of the run (Hägele et al. 2024, section 3)."""

    final: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate, as a share of the peak."""

    @field_validator("decay_steps")
    @classmethod
    def _only_wsd(cls, value: int | None, info: ValidationInfo) -> int | None:
        name = info.data.get("name", "wsd")
        if value is not None and name != "wsd":
            raise ValueError(f"is for wsd, and schedule.name is {name}: remove it")
        return value

    @field_validator("final")
    @classmethod
    def _falls(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("name") == "constant":
            raise ValueError("is for schedules that fall, and schedule.name is constant: remove it")
        return value

    def fall_steps(self, total_steps: int) -> int:
        """Steps of the fall in a run of ``total_steps``."""
        if self.name == "wsd":
            room = total_steps - self.warmup_steps
            return self.decay_steps if self.decay_steps is not None else max(1, min(room, total_steps // 5))
        return 0 if self.name == "constant" else total_steps - self.warmup_steps

    def too_long(self, total_steps: int) -> tuple[str, str] | None:
        """The field that does not fit a run of ``total_steps``, and why; None if both fit."""
        if self.warmup_steps >= total_steps:
            return "warmup_steps", f"must be fewer than the {total_steps} steps of the run"
        if self.decay_steps is not None and self.warmup_steps + self.decay_steps > total_steps:
            most = total_steps - self.warmup_steps
            why = f"must be at most {most}, since the warm-up uses the rest of {total_steps} steps"
            return "decay_steps", why
        return None
