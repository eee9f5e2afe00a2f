"""The values under the pointer: the training chart in slices, each with its values as a line of text.

The report runs no script, so CSS shows the text of the slice that is pointed at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from jobs.report import plot_style as style
from jobs.report.charts import BADGE_HEAD, evaluation_points, incident_marks, span
from jobs.report.data import Run
from jobs.report.formats import count, number
from jobs.report.series import Floats

SLICES = 150
_SIGNALS = (("loss", "loss"), ("grad_norm", "gradient norm"), ("lr", "learning rate"))


@dataclass(frozen=True, slots=True)
class Hover:
    """The texts from left to right, and the edges of the drawing, in per cent of the chart's width."""

    texts: list[str]
    left: float
    right: float
    top: float
    bottom: float


def training_values(run: Run) -> Hover:
    """Of each slice the attempts, the steps, and the least and the largest value of each signal."""
    low, high = span(run)
    edges = np.linspace(low, high, min(SLICES, max(1, len(run.steps))) + 1)
    head = style.TITLE + (BADGE_HEAD if incident_marks(run.incidents, span(run)) else 0)
    sides = {"left": style.LEFT, "right": style.RIGHT, "top": head, "bottom": style.FOOT}
    share = {side: round(100 * units / style.WIDTH, 2) for side, units in sides.items()}
    return Hover([_text(run, a, b) for a, b in pairwise(edges)], **share)


def _text(run: Run, low: float, high: float) -> str:
    attempts = run.steps.attempt
    last = high >= attempts[-1]
    inside = (attempts >= low) & ((attempts <= high) if last else (attempts < high))
    if not inside.any():
        return ""
    parts = [
        f"attempt {_ends(attempts[inside], _whole)}",
        f"step {_ends(run.steps.step[inside], _whole)}",
        *(f"{words} {_ends(getattr(run.steps, name)[inside])}" for name, words in _SIGNALS),
    ]
    places, values = evaluation_points(run, "test_accuracy")
    measured = [value for x, value in zip(places, values, strict=True) if low <= x and (x < high or last)]
    parts += [f"test accuracy {number(measured[-1])} %"] if measured else []
    return ", ".join(part for part in parts if not part.endswith(" "))


def _ends(values: Floats, text: Callable[[float], str] = number) -> str:
    """``0.41`` or ``0.41 to 7.05``; empty where nothing is finite."""
    known = values[np.isfinite(values)]
    if not len(known):
        return ""
    low, high = text(float(known.min())), text(float(known.max()))
    return low if low == high else f"{low} to {high}"


def _whole(value: float) -> str:
    return count(int(value))
