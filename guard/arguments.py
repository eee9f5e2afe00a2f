"""What a user may pass to the guard, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from guard.act.fused import FusedStep
from guard.act.snapshot import Stateful
from guard.config import GuardConfig
from guard.errors import GuardError
from guard.record.metrics import GuardMetrics

_LIMITS = ("auto", "norm", "off")


def check_deferred(config: GuardConfig, fused: FusedStep) -> None:
    """Raises GuardError where a step cannot be decided on the device."""
    if not fused.able:
        raise GuardError(
            "mode deferred needs torch's SGD, Adam, AdamW or Adagrad with fused=True in every group, and no "
            "GradScaler (bfloat16 needs none): choose such an optimizer, or mode exact"
        )
    if config.clip.kind not in _LIMITS or (config.clip.kind == "norm" and config.clip.norm_type != 2):
        raise GuardError(
            f"mode deferred has no clip.kind {config.clip.kind} (norm_type {config.clip.norm_type}): choose "
            "auto, norm with norm_type 2, or off; or mode exact"
        )
    if config.on_suspect != "skip":
        raise GuardError("mode deferred skips a suspect step: set on_suspect to skip, or mode to exact")


def check_states(
    scheduler: Any, states: Mapping[str, Stateful], data: Stateful | None, ema: Stateful | None
) -> None:
    """Raises GuardError for a scheduler or a state that a rollback could not restore."""
    if isinstance(scheduler, ReduceLROnPlateau):
        raise GuardError(
            "ReduceLROnPlateau needs a metric at each step, which the guard does not have: "
            'step it yourself and pass it as state={"plateau": scheduler}'
        )
    for name in ("data", "ema"):
        if name in states:
            raise GuardError(f"state has the key {name!r}: write {name}=..., an argument beside state=")
    named = {f"state[{name!r}]": stateful for name, stateful in states.items()}
    for name, stateful in {**named, "data": data, "ema": ema}.items():
        able = hasattr(stateful, "state_dict") and hasattr(stateful, "load_state_dict")
        if stateful is not None and not able:
            raise GuardError(f"{name} is a {type(stateful).__name__}: give it state_dict and load_state_dict")


def as_metrics(metrics: GuardMetrics | CollectorRegistry | None, job: str) -> GuardMetrics | None:
    """A ``GuardMetrics``, made and registered where a registry was given."""
    if isinstance(metrics, CollectorRegistry):
        created = GuardMetrics(job=job)
        try:
            created.register(metrics)
        except ValueError as error:
            raise GuardError(f"metrics: {error}") from None
        return created
    return metrics


class WrappedOptimizer:
    """The user's optimizer, which Accelerate may have wrapped: the wrapper steps only now and then.

    Attributes:
        inner: torch's own optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._state = getattr(optimizer, "gradient_state", None)
        self.inner: Optimizer = optimizer if self._state is None else optimizer.optimizer  # type: ignore[attr-defined]

    def check_step(self) -> None:
        """Raises GuardError within Accelerate's ``accumulate`` before the last micro-batch of a step."""
        if self._state is not None and not self._state.sync_gradients:
            raise GuardError(
                "Accelerate still accumulates gradients: write guard.backward(loss, weight=1 / "
                "accelerator.gradient_accumulation_steps), and guard.step() only if "
                "accelerator.sync_gradients"
            )
