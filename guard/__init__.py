"""GradGuard's guard: keeps a PyTorch training alive through gradient explosions.

guard = GradientGuard(model, optimizer, GuardConfig())
for batch in loader:
    optimizer.zero_grad()
    guard.backward(loss_fn(model, batch))
    report = guard.step()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.clips.config import ClipConfig
    from guard.config import GuardConfig, RecoveryConfig, SnapshotConfig
    from guard.decide import BudgetConfig
    from guard.detect import DetectConfig, SpikeDetector, Verdict
    from guard.errors import GuardError, GuardHalt, RankDivergence, RankLost, UnsupportedGradient
    from guard.fault_config import FaultConfig
    from guard.faults import FaultInjector
    from guard.guard import GradientGuard
    from guard.metrics import GuardMetrics
    from guard.preflight import run_preflight
    from guard.record import Incident, Journal
    from guard.report import StepReport

_HOME = {
    "BudgetConfig": "decide",
    "ClipConfig": "clips.config",
    "DetectConfig": "detect",
    "FaultConfig": "fault_config",
    "FaultInjector": "faults",
    "GradientGuard": "guard",
    "GuardConfig": "config",
    "GuardError": "errors",
    "GuardHalt": "errors",
    "GuardMetrics": "metrics",
    "Incident": "record",
    "Journal": "record",
    "RankDivergence": "errors",
    "RankLost": "errors",
    "RecoveryConfig": "config",
    "SnapshotConfig": "config",
    "SpikeDetector": "detect",
    "StepReport": "report",
    "UnsupportedGradient": "errors",
    "Verdict": "detect",
    "run_preflight": "preflight",
}

__all__ = [
    "BudgetConfig",
    "ClipConfig",
    "DetectConfig",
    "FaultConfig",
    "FaultInjector",
    "GradientGuard",
    "GuardConfig",
    "GuardError",
    "GuardHalt",
    "GuardMetrics",
    "Incident",
    "Journal",
    "RankDivergence",
    "RankLost",
    "RecoveryConfig",
    "SnapshotConfig",
    "SpikeDetector",
    "StepReport",
    "UnsupportedGradient",
    "Verdict",
    "run_preflight",
]


def __getattr__(name: str) -> Any:
    """Imports on first use: whoever needs the detector or the metrics alone does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'guard' has no attribute {name!r}")
    return getattr(importlib.import_module(f"guard.{_HOME[name]}"), name)
