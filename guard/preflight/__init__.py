"""Pre-flight: does signal pass through the network, and does the gradient come back?

``run``: one real batch through the model, which is left unchanged
``probe``: measures each layer with hooks
``findings``: verdict, first bad layer and advice
``report``: the result
``lr_range``: the learning-rate range test

from guard.preflight import run_preflight
report = run_preflight(model, lambda m: loss_fn(m(inputs), targets))
print(report.verdict, report.suggestion)
"""

from guard.preflight.lr_range import LrRange, learning_rate_range
from guard.preflight.report import LayerReport, PreflightReport
from guard.preflight.run import run_preflight

__all__ = ["LayerReport", "LrRange", "PreflightReport", "learning_rate_range", "run_preflight"]
