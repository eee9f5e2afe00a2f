"""The sections ``optimizer`` and ``schedule`` of a spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from guard.config import Config
from jobs.spec.errors import did_you_mean, related
from jobs.spec.odd_characters import advice
from jobs.spec.workload_names import IMPORT_PATH

DEFAULTS_BY_OPTIMIZER: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
    "adam": {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.01},
    "muon": {"lr": 1e-3, "momentum": 0.95, "weight_decay": 0.1},
}
_BY_PATH = {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0}
SCHEDULES = ("constant", "cosine", "linear", "wsd")
_ADAM_BETAS = (0.9, 0.999)
Share = Annotated[float, Field(ge=0, lt=1)]


def _by_name(field: str) -> Callable[[dict[str, Any]], float]:
    return lambda optimizer: DEFAULTS_BY_OPTIMIZER.get(optimizer["name"], _BY_PATH)[field]


def _named(*known: str) -> AfterValidator:
    """One of these names, or the import path of a class or function."""

    def check(value: str) -> str:
        if value in known or IMPORT_PATH.fullmatch(value):
            return value
        if ":" in value:
            raise ValueError("is not an import path: write package.module:Class")
        suggestion = advice(value) or did_you_mean(value, known)
        own = "" if suggestion else ", or your own as package.module:Class"
        raise related(f"must be one of {', '.join(known)}{own}", value=value, suggestion=suggestion)

    return AfterValidator(check)


def _options(value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    if value and ":" not in info.data.get("name", ":"):
        raise ValueError(f"is for a class by its import path, and name is {info.data['name']}: remove it")
    return value


Options = Annotated[dict[str, Any], AfterValidator(_options)]


class OptimizerSpec(Config):
    """The optimizer. The defaults of learning rate, momentum and weight decay depend on its name."""

    name: Annotated[str, _named(*DEFAULTS_BY_OPTIMIZER)] = "sgd"
    """The algorithm: ``sgd``, ``adam``, ``adamw``, ``muon``, or the import path of any other, as
    ``torch.optim:RAdam`` or ``bitsandbytes.optim:AdamW8bit``. Default in the workload language: adamw.
    ``muon`` is Muon for the matrices inside the model and adamw for everything else: embeddings, the last
    layer, convolutions, norms, biases."""

    lr: float = Field(default_factory=_by_name("lr"), gt=0, allow_inf_nan=False)
    """Peak learning rate. Default: 0.05 for sgd, 0.001 for all others."""

    momentum: float = Field(default_factory=_by_name("momentum"), ge=0, lt=1)
    """Momentum of sgd and muon. Default: 0.9 for sgd, 0.95 for muon; the others have none here."""

    betas: tuple[Share, Share] = _ADAM_BETAS
    """Decay rates of the two moments of adam and adamw. Default: 0.9, 0.999; for adamw and muon in the
    workload language 0.9, 0.95."""

    weight_decay: float = Field(default_factory=_by_name("weight_decay"), ge=0, allow_inf_nan=False)
    """Weight decay: L2 for sgd and adam, decoupled for adamw and muon. Default: 0.0005 sgd, 0 adam, 0.01
    adamw, 0.1 muon, 0 for an import path; for adamw in the workload language 0.1."""

    nesterov: bool = False
    """Nesterov momentum, for sgd; muon always has it."""

    options: Options = Field(default_factory=dict)
    """Further arguments of an optimizer by import path, beside ``lr`` and ``weight_decay``."""

    @field_validator("options")
    @classmethod
    def _own_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("lr", "weight_decay", "params"):
            if name in value:
                advice = "remove it" if name == "params" else f"write optimizer.{name}"
                raise related(f"is set by the job: {advice}", field=name, value=value[name])
        return value

    @field_validator("momentum")
    @classmethod
    def _not_adam(cls, value: float, info: ValidationInfo) -> float:
        name = info.data.get("name", "sgd")
        if value and ":" in name:
            raise ValueError("is for sgd and muon: write optimizer.options.momentum")
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
        if ":" in info.data.get("name", "sgd") and value != _ADAM_BETAS:
            raise ValueError("is for adam, adamw and muon: write optimizer.options.betas")
        if info.data.get("name") == "sgd" and value != _ADAM_BETAS:
            raise ValueError("is for adam and adamw, and optimizer.name is sgd: remove it, or set momentum")
        return value


class ScheduleSpec(Config):
    """The learning rate over the steps: a linear warm-up, then constant or falling."""

    name: Annotated[str, _named(*SCHEDULES)] = "cosine"
    """``constant``: stay at the peak. ``cosine``, ``linear``: fall along a half cosine or a line until the
    end. ``wsd`` (warm-up, stable, decay): stay at the peak, then fall along a line over the last
    ``decay_steps``. Or the import path of a class or function of a schedule that is stepped at each step, as
    ``torch.optim.lr_scheduler:OneCycleLR``."""

    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from zero to its peak; fewer than the whole run."""

    decay_steps: PositiveInt | None = None
    """Steps of the fall of ``wsd``. Default: a fifth of the run (Hägele et al. 2024, section 3)."""

    final: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate, as a share of the peak."""

    options: Options = Field(default_factory=dict)
    """Arguments of a schedule by import path. ``total_steps``, ``T_max`` and ``num_training_steps`` are the
    steps of the run where they are not given."""

    @field_validator("warmup_steps", "final")
    @classmethod
    def _ours(cls, value: float, info: ValidationInfo) -> float:
        if value and ":" in info.data.get("name", "cosine"):
            raise ValueError("is for schedules by name: remove it, or write it into schedule.options")
        return value

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
        return 0 if self.name not in ("cosine", "linear") else total_steps - self.warmup_steps

    def too_long(self, total_steps: int) -> tuple[str, str] | None:
        """The field that does not fit a run of ``total_steps``, and why; None if both fit."""
        if self.warmup_steps >= total_steps:
            return "warmup_steps", f"must be fewer than the {total_steps} steps of the run"
        if self.decay_steps is not None and self.warmup_steps + self.decay_steps > total_steps:
            most = total_steps - self.warmup_steps
            why = f"must be at most {most}, since the warm-up uses the rest of {total_steps} steps"
            return "decay_steps", why
        return None
