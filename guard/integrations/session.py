"""A guarded training whose loop a framework owns: it runs backward and the schedule, the guard the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from prometheus_client import CollectorRegistry
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer

from guard import GradientGuard, GuardConfig, GuardMetrics, Incident, Journal, StepReport
from guard.act.rollback import NamesOnly
from guard.act.snapshot import Stateful
from guard.errors import GuardError, GuardHalt

log = logging.getLogger("guard")


class GuardOptions(TypedDict, total=False):
    """What a user of an integration may pass on to ``GradientGuard``; see there."""

    state: Mapping[str, Stateful] | None
    data: Stateful | None
    ema: Stateful | None
    metrics: GuardMetrics | CollectorRegistry | None
    journal: Journal | str | Path | None
    job: str


class GuardSession:
    """What the integrations have in common: from ``begin`` on, one guard over one training.

    For each micro-batch ``observe``, for each optimizer step ``step``, then the framework advances its
    schedule if ``applied`` says so, then ``settle``.
    """

    def __init__(self, config: GuardConfig | None, **options: Unpack[GuardOptions]) -> None:
        if unknown := options.keys() - GuardOptions.__annotations__.keys():
            raise TypeError(f"unexpected keyword argument {', '.join(map(repr, sorted(unknown)))}")
        self.config = config or GuardConfig()
        if self.config.mode == "auto":  # the framework acts on the report of each step at once
            self.config = self.config.model_copy(update={"mode": "exact"})
        if self.config.recovery.data == "replay":
            raise GuardError(
                "recovery.data is replay, but the framework owns the data loader, which cannot be "
                "rolled back: set recovery.data to advance"
            )
        self._options = options
        self._resumed: dict[str, Any] | None = None
        self._skips = 0
        self._rollbacks = 0
        self._observed = False
        self.guard: GradientGuard | None = None
        self.report: StepReport | None = None
        self.applied = True

    def begin(
        self, model: nn.Module, optimizer: Optimizer, *, schedules: Sequence[Any], scaler: GradScaler | None
    ) -> None:
        """Creates the guard once everything else is loaded, and continues a loaded state."""
        if isinstance(optimizer, LBFGS):
            raise GuardError("LBFGS runs backward many times a step: choose another optimizer")
        named = {f"schedule.{i}": schedule for i, schedule in enumerate(schedules)}
        options: GuardOptions = {**self._options, "state": {**named, **(self._options.get("state") or {})}}
        if (data := self._options.get("data")) is not None:
            options["data"] = NamesOnly(data)
        self.guard = GradientGuard(model, optimizer, self.config, scaler=scaler, **options)
        self._skips = self._rollbacks = 0
        self._observed, self.report, self.applied = False, None, True
        if self._resumed is not None:
            self._skips, self._rollbacks = self._resumed["skips"], self._resumed["rollbacks"]
            self.guard.load_state_dict(self._resumed["guard"])
            self._resumed = None

    def observe(self, loss: Tensor) -> None:
        """Right before the backward of a micro-batch; ``loss`` is its mean, whatever backward gets."""
        if self.guard is not None:
            self.guard.observe_loss(loss)
            self._observed = True

    def step(self) -> None:
        """Replaces the optimizer's step; sets ``report`` and ``applied``.

        Raises:
            GuardHalt: as ``GradientGuard.step``.
        """
        observed, self._observed = self._observed, False
        self.applied = not observed  # without a loss there are no gradients, and nothing to skip
        if self.guard is None or not observed:
            return
        try:
            self.report = report = self.guard.step(settle=False)
        except GuardHalt as halt:
            _log_incident(halt.incident)
            raise
        self.applied = report.applied
        self._skips += report.action == "skipped" and not report.overflow
        self._rollbacks += report.action == "rolled_back"
        if report.incident is not None:
            _log_incident(report.incident)

    def settle(self) -> None:
        """After the framework advanced its schedule."""
        if self.guard is not None:
            self.guard.settle()

    def counts(self) -> dict[str, float]:
        """For the framework's log: steps applied, skips, rollbacks, scale of the learning rate."""
        if self.guard is None or self.report is None:
            return {}
        return {
            "steps": float(self.guard.steps),
            "skips": float(self._skips),
            "rollbacks": float(self._rollbacks),
            "lr_scale": self.report.recovery["lr_scale"],
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors; empty before ``begin``."""
        if self.guard is None:
            return {}
        return {"guard": self.guard.state_dict(), "skips": self._skips, "rollbacks": self._rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Kept for ``begin``, which comes after everything else has been loaded."""
        self._resumed = state or None


def _log_incident(incident: Incident) -> None:
    back = "" if incident.rolled_back_to is None else f" to step {incident.rolled_back_to}"
    log.warning("step %d: %s%s: %s", incident.step, incident.action, back, incident.reason)
