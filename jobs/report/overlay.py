"""Two runs in one chart: the history of each that stands, over the steps that were applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from jobs.report import plot_style as look
from jobs.report.charts import LOW, TALL
from jobs.report.colors import Role
from jobs.report.cost import rolled_back
from jobs.report.data import Run
from jobs.report.plot_style import Panel, Size
from jobs.report.series import Flags, Floats
from jobs.report.svg import drawing, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (Role.LOSS, Role.CLIP)
"""Of the first run, and of the second."""
_CURVES = (("Loss", "loss", TALL), ("Gradient norm", "grad_norm", TALL), ("Learning rate", "lr", LOW))
_ACCURACY = "test_accuracy"


def overlay(runs: Sequence[Run], size: Size) -> Markup:
    """Loss, gradient norm, learning rate and test accuracy of the runs, one colour each."""
    panels = [_panel(runs, column, title, height, size) for title, column, height in _CURVES]
    if any(_evaluations(run)[0] for run in runs):
        panels.append(Panel("Test accuracy, %", LOW, lambda axes: _accuracies(axes, runs)))
    with drawing(f"overlay-{size.name}"):
        return inline_svg(look.stack(panels, size, _span(runs), head=4, axis_name="step"))


def standing(run: Run) -> Flags:
    """The attempts whose step was applied and not undone."""
    return np.isfinite(run.steps.step) & ~rolled_back(run) & ~run.steps.skipped


def _panel(runs: Sequence[Run], column: str, title: str, height: int, size: Size) -> Panel:
    return Panel(title, height, lambda axes: _curves(axes, runs, column, height, size))


def _curves(axes: Axes, runs: Sequence[Run], column: str, height: float, size: Size) -> None:
    found = [_column(run, column) for run in runs]
    values = np.concatenate([y[np.isfinite(y)] for _, y in found])
    look.value_axis(axes, values, height)
    for (x, y), color in zip(found, COLORS, strict=True):
        look.line(axes, x, y, color, size, noisy=column != "lr")


def _column(run: Run, column: str) -> tuple[Floats, Floats]:
    stands = standing(run)
    values: Floats = getattr(run.steps, column)
    return run.steps.step[stands], values[stands]


def _accuracies(axes: Axes, runs: Sequence[Run]) -> None:
    found = [_evaluations(run) for run in runs]
    look.value_axis(axes, np.array([y for _, ys in found for y in ys]), LOW)
    for (x, y), color in zip(found, COLORS, strict=True):
        axes.plot(x, y, color=color, marker="o", markersize=5, linewidth=1.4, clip_on=False)


def _evaluations(run: Run) -> tuple[list[float], list[float]]:
    points = [(e.step, e.metrics[_ACCURACY]) for e in run.evaluations if _ACCURACY in e.metrics]
    known = [(float(x), 100 * y) for x, y in points if x is not None and np.isfinite(y)]
    return [x for x, _ in known], [y for _, y in known]


def _span(runs: Sequence[Run]) -> look.Span:
    steps = np.concatenate([run.steps.step[standing(run)] for run in runs])
    low, high = (float(steps.min()), float(steps.max())) if len(steps) else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
