"""Keeps a PyTorch training alive through gradient explosions.

guard = GradientGuard(model, optimizer, GuardConfig())
for batch in loader:
    optimizer.zero_grad()
    guard.backward(loss_fn(model, batch))
    report = guard.step()

``guard``: ``GradientGuard``
``backward``: the guard's part of a backward
``auto_mode``: chooses between exact and deferred
``arguments``: checks what it is given
``step``: one step through the five verbs
``parts``: what carries them out
``own_loss``: the loss of a batch before and after its own step
``attention``: the largest attention logits, and weights rescaled where they are too large
``way_back``: how long the first steps should have been, on the way back from them
``beside``: the loss of the batch computed beside the step
``recomputation``: batches computed again
``repairs``: memory that was damaged on a rank is corrected
``deferred_step``: the same, decided on the device
``pipelines``: the pipeline of each mode
``observe``: norms, finite check, movement of weights and buffers
``agree``: all ranks hold the same numbers
``decide``: verdict and rung
``act``: apply, clip, skip, roll back
``record``: incidents and metrics
``clip``: kinds of clipping
``preflight``: checks before the first step
``faults``: fault injection
``integrations``: Lightning, Hugging Face
``trackers``: TensorBoard, W&B, MLflow, trackio, CSV
``config``: the options
``types``: the facts of one step
``records``: what is stored of a run
``rows``: records as rows of strict JSON
``errors``: what the guard raises
``hooks``: a hook on the model that its copies leave behind
``logs``: logs of a training, whoever wrote them
``lazy``: names that are imported on first use
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
    from guard.records import Incident, Verdict
    from guard.types import StepReport

_NAMES = {
    "config": "BudgetConfig ClipConfig DetectConfig GuardConfig RecoveryConfig SnapshotConfig",
    "decide.detector": "SpikeDetector",
    "errors": "GuardError GuardHalt RankDivergence RankLost UnsupportedGradient",
    "faults.config": "FaultConfig",
    "faults.injector": "FaultInjector",
    "guard": "GradientGuard",
    "preflight": "run_preflight",
    "record.journal": "Journal",
    "record.metrics": "GuardMetrics",
    "records": "Incident Verdict",
    "types": "StepReport",
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

__getattr__ = lazy(__name__, {name: home for home, names in _NAMES.items() for name in names.split()})
