"""GradGuard's guard: keeps a PyTorch training alive through gradient explosions.

guard = GradientGuard(model, optimizer, GuardConfig())
for batch in loader:
    optimizer.zero_grad()
    guard.backward(loss_fn(model, batch))
    report = guard.step()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from guard.config import (
        BudgetConfig,
        ClipConfig,
        DetectConfig,
        GuardConfig,
        RecoveryConfig,
        SnapshotConfig,
    )
    from guard.decide.detector import SpikeDetector
    from guard.errors import GuardError, GuardHalt, RankDivergence, RankLost, UnsupportedGradient
    from guard.faults.config import FaultConfig
    from guard.faults.injector import FaultInjector
    from guard.guard import GradientGuard
    from guard.preflight import run_preflight
    from guard.record.journal import Journal
    from guard.record.metrics import GuardMetrics
    from guard.records import Incident
    from guard.types import StepReport, Verdict

_HOME = {
    "BudgetConfig": "config",
    "ClipConfig": "config",
    "DetectConfig": "config",
    "FaultConfig": "faults.config",
    "FaultInjector": "faults.injector",
    "GradientGuard": "guard",
    "GuardConfig": "config",
    "GuardError": "errors",
    "GuardHalt": "errors",
    "GuardMetrics": "record.metrics",
    "Incident": "records",
    "Journal": "record.journal",
    "RankDivergence": "errors",
    "RankLost": "errors",
    "RecoveryConfig": "config",
    "SnapshotConfig": "config",
    "SpikeDetector": "decide.detector",
    "StepReport": "types",
    "UnsupportedGradient": "errors",
    "Verdict": "types",
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

__getattr__ = lazy(__name__, _HOME)
