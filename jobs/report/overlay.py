"""Two runs in one chart: the history of each that stands, over the steps that were applied."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from jobs.report import plot_style as style
from jobs.report.charts import evaluation_points
from jobs.report.colors import LIGHT as COLOR
from jobs.report.cost import rolled_back
from jobs.report.data import Run
from jobs.report.plot_style import LOW, TALL, Panel
from jobs.report.series import Flags
from jobs.report.svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (COLOR["loss"], COLOR["clip"])
"""Of the first run, and of the second."""
_CURVES = (("Loss", "loss", TALL), ("Gradient norm", "grad_norm", TALL), ("Learning rate", "lr", LOW))


def overlay(runs: Sequence[Run]) -> Markup:
    """Loss, gradient norm, learning rate and test accuracy of the runs, one colour each."""
    panels = [
        Panel(title, height, partial(_curves, runs=runs, column=column)) for title, column, height in _CURVES
    ]
    if any(evaluation_points(run, "test_accuracy", "step")[0] for run in runs):
        panels.append(Panel("Test accuracy, %", LOW, lambda axes: _accuracies(axes, runs)))
    steps = np.sort(np.concatenate([run.steps.step[standing(run)] for run in runs]))
    return inline_svg("overlay", lambda: style.stack(panels, style.limits(steps), axis_name="step"))


def standing(run: Run) -> Flags:
    """The attempts whose step was applied and not rolled back."""
    return np.isfinite(run.steps.step) & ~rolled_back(run) & ~run.steps.skipped


def _curves(axes: Axes, runs: Sequence[Run], column: str) -> None:
    kept = [(run.steps, standing(run)) for run in runs]
    found = [(steps.step[stands], getattr(steps, column)[stands]) for steps, stands in kept]
    style.value_axis(axes, np.concatenate([y for _, y in found]))
    for (x, y), color in zip(found, COLORS, strict=True):
        style.line(axes, x, y, color, noisy=column != "lr")


def _accuracies(axes: Axes, runs: Sequence[Run]) -> None:
    found = [evaluation_points(run, "test_accuracy", "step") for run in runs]
    style.value_axis(axes, np.array([y for _, ys in found for y in ys]))
    for (x, y), color in zip(found, COLORS, strict=True):
        axes.plot(x, y, color=color, marker="o", clip_on=False)
