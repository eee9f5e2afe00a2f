"""GradGuard's guard: keeps a PyTorch training alive through gradient explosions.

guard = GradientGuard(model, optimizer, GuardConfig())
for batch in loader:
    optimizer.zero_grad()
    guard.backward(loss_fn(model, batch))
    report = guard.step()
"""

from guard.clips import ClipConfig
from guard.config import GuardConfig
from guard.decide import BudgetConfig
from guard.detect import DetectConfig, SpikeDetector, Verdict
from guard.errors import GuardError, GuardHalt, RankDivergence, UnsupportedGradient
from guard.faults import FaultConfig, FaultInjector
from guard.guard import GradientGuard
from guard.metrics import GuardMetrics
from guard.record import Incident, Journal
from guard.recover import RecoveryConfig
from guard.report import StepReport
from guard.snapshot import SnapshotConfig

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
    "RecoveryConfig",
    "SnapshotConfig",
    "SpikeDetector",
    "StepReport",
    "UnsupportedGradient",
    "Verdict",
]
