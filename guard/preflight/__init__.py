"""Before the first step: does signal come through the network, and does gradient come back?

from guard.preflight import run_preflight
report = run_preflight(model, lambda m: loss_fn(m(inputs), targets))
print(report.verdict, report.suggestion)
"""

from guard.preflight.lr_range import LrRange, learning_rate_range
from guard.preflight.report import LayerReport, PreflightReport
from guard.preflight.run import run_preflight

__all__ = ["LayerReport", "LrRange", "PreflightReport", "learning_rate_range", "run_preflight"]
