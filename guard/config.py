"""Every option of the guard, documented field by field: pydantic models that need no torch to be read."""

from __future__ import annotations

import difflib
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


class Config(BaseModel):
    """A validated, immutable piece of configuration; an unknown field is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _explained(type(self), error) from None

    # Only a call of the class comes here: fields that are models are validated as pydantic does it.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise _explained(cls, error) from None


def _explained(model: type[BaseModel], error: ValidationError) -> ValidationError:
    """The same error; where a field is unknown it names the nearest one, or all there are."""
    lines = [
        InitErrorDetails(
            type=PydanticCustomError(detail["type"], _message(model, detail)),
            loc=detail["loc"],
            input=detail["input"],
        )
        for detail in error.errors()
    ]
    return ValidationError.from_exception_data(error.title, lines)


def _message(model: Any, detail: Any) -> Any:
    if detail["type"] != "extra_forbidden":
        return detail["msg"]
    *path, name = detail["loc"]
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = None if field is None else field.annotation
    fields = list(getattr(model, "model_fields", ()))
    near = difflib.get_close_matches(str(name), fields, n=1)
    return f'unknown field: did you mean "{near[0]}"?' if near else f"unknown field: {', '.join(fields)}"


ClipKind = Literal["auto", "norm", "value", "group", "agc", "autoclip", "zclip", "adagc", "off"]

_FIELDS_OF: dict[ClipKind, tuple[str, ...]] = {
    "auto": ("factor", "ceiling"),
    "norm": ("max_norm", "norm_type"),
    "value": ("max_value",),
    "group": ("max_norm", "norm_type"),
    "agc": ("clip_factor", "eps"),
    "autoclip": ("percentile", "history_steps"),
    "zclip": ("alpha", "z_thresh", "warmup_steps"),
    "adagc": ("beta", "lambda_abs", "lambda_rel", "warmup_steps"),
}
_REQUIRED: dict[ClipKind, tuple[str, float]] = {
    "norm": ("max_norm", 1.0),
    "group": ("max_norm", 1.0),
    "value": ("max_value", 0.5),
}
_SELECTS: dict[str, ClipKind] = {"max_norm": "norm", "max_value": "value"}


class ClipConfig(Config):
    """How gradients are clipped. A field that does not belong to the kind may only have its default."""

    kind: ClipKind = "auto"
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
    """``zclip``: norms more than this many standard deviations above the mean are clipped."""

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
        for field, info in type(self).model_fields.items():
            kinds, value = (
                [kind for kind, fields in _FIELDS_OF.items() if field in fields],
                getattr(self, field),
            )
            if kinds and self.kind not in kinds and value != info.default:
                raise ValueError(
                    f"{field} is {value}, but kind is {self.kind}, which has no {field}: "
                    f"remove it or set kind to {' or '.join(kinds)}"
                )
        return self


class DetectConfig(Config):
    """What counts as normal, and how far from it a step is anomalous. Steps are observed steps."""

    window: int = Field(default=512, ge=8)
    """Accepted steps that describe the noise of a run."""

    level_rows: int = Field(default=24, ge=5)
    """Accepted steps whose median is the present level; few, so that it follows a trend."""

    min_history: int = Field(default=12, ge=5)
    """Accepted steps before the ordinary threshold holds; until then only what is e times all before is
    anomalous (20 times after the first step, 7 times after two)."""

    sigmas: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """Robust standard deviations above the level from which on a value is anomalous."""

    min_excess: float = Field(default=0.25, gt=0, allow_inf_nan=False)
    """The least excess of an anomalous loss, as a share of its level, however quiet the run is."""

    min_excess_norm: float = Field(default=0.35, gt=0, allow_inf_nan=False)
    """The same for the norms."""

    loss_floor: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """A loss below this has no meaning: what rises to it is no spike. ``null``: learned, a fiftieth of the
    first level and at most 0.01. Set it where a loss is near zero by design: RL (a surrogate around 0), GRPO
    (beta times KL), a GAN's hinge, memorised data; 0 for losses that are tiny but exact."""

    patience: int = Field(default=16, ge=4, le=256)
    """This many elevated steps among four times as many are no outliers: they become the new normal."""

    @model_validator(mode="after")
    def _history_fits(self) -> DetectConfig:
        kept = min(self.level_rows, self.window)
        if self.min_history > kept:
            raise ValueError(
                f"min_history is {self.min_history}, but only {kept} steps are kept: "
                "set min_history to at most level_rows and window"
            )
        return self


class BudgetConfig(Config):
    """When skips turn into a rollback, and rollbacks into a halt."""

    consecutive_skips: PositiveInt = 3
    """This many skips in a row mean that the state is bad, not the data: roll back."""

    rollbacks: int = Field(default=5, ge=0)
    """Rollbacks allowed within ``window_steps``; the next one halts the run."""

    window_steps: PositiveInt = 2000
    """The length of the window in which rollbacks are counted, in step attempts."""

    stuck_skips: PositiveInt = 250
    """Skips in a row, without a rollback between them, after which the run halts."""


class ExclusionConfig(Config):
    """When one rank is excluded from a batch."""

    after: PositiveInt | None = 3
    """A bad step is computed again without the rank that caused it, if that rank caused this many bad steps
    within ``window_steps``, this one included; needs a closure. ``null``: never."""

    window_steps: PositiveInt = 200
    """How far back bad steps count, in step attempts."""

    limit: int = Field(default=250, ge=0)
    """Exclusions after which the rank's data counts as its new normal. The count restarts once
    ``window_steps`` attempts have passed without a bad step of one rank."""


class AttentionConfig(Config):
    """Attention logits: a layer whose largest grows beyond about 100 is on its way to diverge."""

    action: Literal["off", "watch", "qk_clip"] = "off"
    """``watch`` measures the largest logit of each head; ``qk_clip`` also rescales, after the step, the
    queries and keys of a head where it is above ``tau`` (Kimi K2, 2025, section 2.1). Both need mode
    ``exact``, and cost one more forward where they measure: of the batch with a closure (jobs pass one),
    else of what the model computed last."""

    every: PositiveInt = 100
    """Attempts between two measurements."""

    tau: float = Field(default=100.0, gt=0, allow_inf_nan=False)
    """The largest logit that is left alone."""

    @model_validator(mode="before")
    @classmethod
    def _action_alone(cls, value: Any) -> Any:
        return {"action": value} if isinstance(value, str) else value


class SnapshotConfig(Config):
    """How often a snapshot is taken, how many are kept, and when one counts as healthy."""

    every_steps: PositiveInt = 50
    """Optimizer steps between snapshots. A rollback loses at most about this many."""

    keep: int = Field(default=2, ge=2, le=16)
    """Snapshots kept; each costs as much memory as the model and its optimizer. It is allocated at the start,
    and for moments after the first step."""

    clean_steps: PositiveInt = 2
    """Clean steps that must follow a snapshot before a rollback may restore it."""

    place: Literal["device", "host"] = "device"
    """Where the snapshots of a model on a GPU are kept: in its own memory, or in pinned memory of the
    ``host``, to which they are copied while the next forward and backward run. Your loop must then change no
    weight between two steps; averaged weights it may."""


class RecoveryConfig(Config):
    """The cooldown after a rollback. Every measure fades over ``cooldown_steps``."""

    lr_backoff: float = Field(default=0.5, gt=0, le=1)
    """The learning rate is multiplied by this; again with each rollback during a cooldown."""

    weight_decay_factor: float = Field(default=2.0, ge=1)
    """The optimizer's own weight decay is multiplied by this."""

    anchor_l2: float = Field(default=0.01, ge=0)
    """Strength of an L2 pull toward the restored weights (decoupled, times learning rate)."""

    l1: float = Field(default=0.0, ge=0)
    """Strength of a decoupled L1 penalty (times learning rate)."""

    cooldown_steps: int = Field(default=200, ge=0)
    """Optimizer steps until all measures have faded; 0: no cooldown."""

    data: Literal["advance", "replay"] = "advance"
    """``advance`` continues past the data of the steps that were rolled back; ``replay`` feeds it again."""


class GuardConfig(Config):
    """What the guard watches and what it may do; the defaults suit a run nobody has tuned yet."""

    mode: Literal["exact", "deferred", "auto", "shadow", "off"] = "auto"
    """``exact`` decides before each optimizer step. ``deferred`` leaves clipping and skipping to a fused
    optimizer and reads what happened one step later, so that the host does not wait for the device. ``auto``
    is ``deferred`` on CUDA where nothing needs ``exact``, and ``exact`` elsewhere; the log says which and
    why. ``shadow`` watches and reports what it would have done; ``off`` is a bare loop."""

    clip: ClipConfig = Field(default_factory=ClipConfig)
    """Clipping."""

    detect: DetectConfig = Field(default_factory=DetectConfig)
    """The spike detector."""

    on_suspect: Literal["skip", "clip"] = "skip"
    """A single suspect step is skipped, or applied with its gradient clipped to the recent norm."""

    snapshot: SnapshotConfig = Field(default_factory=SnapshotConfig)
    """Healthy states kept in memory."""

    rate: Literal["act", "warn", "off"] = "warn"
    """A learning rate that is too high from the start, where the loss climbs above its value before the first
    update, or (with a closure) steps overshoot: ``act`` returns to the start with a third of the rate, as
    often as needed or better, and keeps that factor under your schedule; ``warn`` names a rate to try once.
    Only mode ``exact`` acts. Later a loss that climbs is a ``warning`` where the rate has risen beyond any
    with which it still fell, or where updates are long (see ``update_norm``); with ``act`` the rate is then
    held at that one, or at a third, as long as your schedule is above it."""
    total_steps: PositiveInt | None = None
    """Of the whole run, where known (a job says it). With ``rate: act`` a rate that only seems too high is
    tried against a third, which takes 150 attempts: in a run of fewer than 3,000 steps it is not."""

    recovery: RecoveryConfig = Field(default_factory=RecoveryConfig)
    """The cooldown after a rollback."""

    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    """When skips turn into a rollback and rollbacks into a halt."""

    rank_exclusion: ExclusionConfig = Field(default_factory=ExclusionConfig)
    """When a rank whose data stays bad is excluded."""

    exclude_samples: bool = False
    """A sample that alone makes a batch bad is excluded, and the step applied with the others, as if the
    batch never had it. Needs mode ``exact``, and ``guard.step(closure, samples=ids)``; jobs pass both."""

    local_norm: Literal["off", "always"] | PositiveInt = "always"
    """Each rank's gradient norm before the all-reduce: never, always, or every k steps. It shows which rank a
    bad gradient comes from."""

    local_norm_by: Literal["auto", "hooks", "comm"] = "auto"
    """How it is measured: by a hook on each parameter, by DDP's communication hook, or whichever suits the
    device."""

    update_norm: Literal["off", "always"] | PositiveInt = 25
    """How far the weights move: measured never, after every step, or every k steps (and snapshots). Shows
    damage to weights, moments and learning rate; it needs one more copy of the weights."""

    attention: AttentionConfig = Field(default_factory=AttentionConfig)
    """Attention logits; ``attention: watch`` and ``attention: qk_clip`` are short for its action."""

    replicas: Literal["auto", "off"] | PositiveInt = "auto"
    """Every k steps weights, moments and buffers of all ranks are compared to the bit, in one pass over them.
    A flipped bit in one rank's memory, which no gradient shows, is named and corrected: copied from a healthy
    rank, and the steps since all were equal are taken again where ``data=`` is given or two ranks disagree.
    Shards that one rank alone holds are compared with themselves, from one step to the next. ``auto``: every
    50 steps, or more where those cost over 0.5 % of a step (to 1,000)."""

    recompute: Literal["auto", "off"] | PositiveInt = "off"
    """Every k-th attempt a healthy batch is computed twice, and its gradients are compared to the bit: this
    finds hardware that computes wrongly now and then; the second result is used. ``auto``: every 100, at most
    1 % of the time. Needs ``guard.step(closure)``, which jobs pass. A loop that does not
    repeat itself is left alone after the first time."""

    watch_buffers: tuple[str, ...] = ("*",)
    """Names of the buffers whose jumps are suspect, as patterns (``*``, ``?``); the last that matches counts,
    and one that begins with ``!`` excludes: ``["*", "!*.codes"]`` for codes that are drawn again by design.
    All are restored when a batch is skipped."""

    dead_steps: PositiveInt = 100
    """A layer whose gradient is exactly zero in this many steps in a row is reported as dead."""

    @model_validator(mode="after")
    def _what_the_host_decides_needs_exact_steps(self) -> GuardConfig:
        needs = {
            "attention computes the batch again": self.attention.action != "off",
            "exclude_samples computes a batch again": self.exclude_samples,
            "rate: act returns to the start of a run": self.rate == "act",
        }
        if self.mode == "deferred" and (asked := [what for what, needed in needs.items() if needed]):
            raise ValueError(f"{asked[0]}: it needs mode: exact, not deferred")
        return self

    @property
    def acts(self) -> bool:
        """Whether the guard may change anything."""
        return self.mode in ("exact", "deferred", "auto")
