"""What is clipped, and to what: one model, whose fields belong to one kind or a few."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from guard.base import Config

Kind = Literal["auto", "norm", "value", "group", "agc", "autoclip", "zclip", "adagc", "off"]

_KINDS_OF: dict[str, tuple[Kind, ...]] = {
    "max_norm": ("norm", "group"),
    "norm_type": ("norm", "group"),
    "max_value": ("value",),
    "factor": ("auto",),
    "ceiling": ("auto",),
    "clip_factor": ("agc",),
    "eps": ("agc",),
    "percentile": ("autoclip",),
    "history_steps": ("autoclip",),
    "alpha": ("zclip",),
    "z_thresh": ("zclip",),
    "beta": ("adagc",),
    "lambda_abs": ("adagc",),
    "lambda_rel": ("adagc",),
    "warmup_steps": ("zclip", "adagc"),
}
_REQUIRED: dict[Kind, tuple[str, float]] = {
    "norm": ("max_norm", 1.0),
    "group": ("max_norm", 1.0),
    "value": ("max_value", 0.5),
}
_SELECTS: dict[str, Kind] = {"max_norm": "norm", "max_value": "value"}


class ClipConfig(Config):
    """How gradients are clipped. A field that does not belong to the kind may only have its default."""

    kind: Kind = "auto"
    """``auto``: the global norm, to a multiple of the recent accepted norm, below a ceiling; ``norm``: the
    global norm, to the fixed ``max_norm``; ``value``: each element, to ``max_value``; ``group``: the norm of
    each parameter group of the optimizer, to ``max_norm``; ``agc``: each unit, to a share of its weights'
    norm; ``autoclip``: the global norm, to a percentile of its history; ``zclip``: the global norm, where its
    z-score is high; ``adagc``: each tensor, to a multiple of its own recent norm; ``off``: never."""

    max_norm: float | None = Field(default=None, gt=0)
    """``norm``, ``group``: the fixed limit of the norm. Giving it without a kind selects ``kind: norm``."""

    norm_type: float = Field(default=2.0, ge=1)
    """``norm``, ``group``: the p of the p-norm; ``.inf`` for the largest absolute value."""

    max_value: float | None = Field(default=None, gt=0)
    """``value``: the largest absolute value of an element. Without a kind it selects ``kind: value``."""

    factor: float = Field(default=3.0, gt=1)
    """``auto``: the limit as a multiple of the median accepted norm."""

    ceiling: float | None = Field(default=1.0, gt=0)
    """``auto``: however far the median rises, the limit never exceeds this, or twice ``factor`` times the
    first median where that is more; null: it follows the median wherever that goes."""

    clip_factor: float = Field(default=0.01, gt=0)
    """``agc``: the largest ratio of a unit's gradient norm to the norm of its weights."""

    eps: float = Field(default=1e-3, gt=0)
    """``agc``: the least norm of a unit's weights, so that weights that begin at zero can move."""

    percentile: float = Field(default=10.0, ge=0, le=100)
    """``autoclip``: the limit is this percentile of the history of norms, from 0 to 100."""

    history_steps: PositiveInt = 1000
    """``autoclip``: accepted steps in the history."""

    alpha: float = Field(default=0.97, gt=0, lt=1)
    """``zclip``: the decay per step of the mean and the variance of the norm."""

    z_thresh: float = Field(default=2.5, gt=0)
    """``zclip``: norms more than so many standard deviations above the mean are clipped."""

    beta: float = Field(default=0.98, gt=0, lt=1)
    """``adagc``: the decay per step of each tensor's mean norm."""

    lambda_abs: float = Field(default=1.0, gt=0)
    """``adagc``: the limit of the global norm during the warm-up."""

    lambda_rel: float = Field(default=1.05, gt=1)
    """``adagc``: the limit of a tensor's norm after the warm-up, as a multiple of its mean norm."""

    warmup_steps: PositiveInt | None = None
    """``zclip``, ``adagc``: accepted steps from which the first statistics come; null: 25 and 100."""

    suspect_factor: float = Field(default=2.0, ge=1)
    """All kinds: a suspect step that is applied is clipped to this multiple of the median accepted norm."""

    @model_validator(mode="before")
    @classmethod
    def _limit_selects_kind(cls, values: object) -> object:
        if isinstance(values, dict):
            for field, kind in _SELECTS.items():
                if values.get(field) is not None:
                    return {"kind": kind, **values}
        return values

    @model_validator(mode="after")
    def _kind_has_its_limit(self) -> ClipConfig:
        field, example = _REQUIRED.get(self.kind, ("kind", 0.0))
        if getattr(self, field) is None:
            missing = f"kind is {self.kind} but {field} is not set"
            raise ValueError(f"{missing}: set {field}, for example {example}")
        return self

    @model_validator(mode="after")
    def _fields_belong_to_kind(self) -> ClipConfig:
        for field, kinds in _KINDS_OF.items():
            value = getattr(self, field)
            if self.kind not in kinds and value != type(self).model_fields[field].default:
                raise ValueError(
                    f"{field} is {value}, but kind is {self.kind}, which has no {field}: "
                    f"leave it out or set kind to {' or '.join(kinds)}"
                )
        return self
