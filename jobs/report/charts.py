"""The charts of a run. Each is a function from data to an inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from guard.records import Incident, WindowRow
from jobs.report import plot_style as style
from jobs.report.checkpoints import Checkpoint
from jobs.report.colors import LIGHT as COLOR
from jobs.report.data import Run
from jobs.report.plot_style import LOW, TALL, Panel
from jobs.report.series import Flags, Floats, bucketed, envelope
from jobs.report.svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BADGE_UNITS, DIGIT_UNITS = 9 * style.TEXT_ON_PHONE, 5 * style.TEXT_ON_PHONE
BADGE_HEAD = 16
"""Units above the training chart for the badges of incidents."""
MOST_INCIDENT_LINES = 300
CROWD = 30


@dataclass(frozen=True, slots=True)
class Mark:
    """One or several incidents that share a place in the chart."""

    x: float
    label: str
    target: str
    color: str


def span(run: Run) -> style.Span:
    """The attempts that the charts cover."""
    return style.limits(run.steps.attempt)


def training(run: Run) -> Markup:
    """Loss, gradient norm, clipping, learning rate and accuracy over the step attempts."""
    return inline_svg("training", lambda: training_figure(run))


def training_figure(run: Run, room: float = 0) -> Figure:
    """The training chart, with `room` units free at its top; to be called inside `svg.drawing`."""
    marks = incident_marks(run.incidents, span(run))
    figure = _stack(run, _panels(run), head=room + (BADGE_HEAD if marks else 0), incidents=True)
    _badges(figure.axes[0], marks)
    return figure


def cost(run: Run) -> Markup:
    """What a step takes, and what of it the guard takes."""
    parts = (("Step, ms", run.steps.step_seconds, "muted"), ("Guard, ms", run.steps.guard_seconds, "norm"))
    panels = [
        Panel(title, LOW, partial(_series, run=run, values=1000 * seconds, color=COLOR[color]))
        for title, seconds, color in parts
    ]
    return inline_svg("cost", lambda: _stack(run, panels))


def checkpoints(run: Run) -> Markup:
    """What the run could roll back to: a row for good ones, for candidates, for those that were removed."""
    panel = Panel("", 60, lambda axes: _checkpoints(axes, run.checkpoints))
    return inline_svg("checkpoints", lambda: _stack(run, [panel], left=100, incidents=True))


def _stack(
    run: Run, panels: Sequence[Panel], *, head: float = 0, left: float = style.LEFT, incidents: bool = False
) -> Figure:
    """Panels over the attempts, with what was rolled back shaded."""
    figure = style.stack(panels, span(run), head=head, left=left)
    for axes in figure.axes:
        style.shade(axes, run.rolled_back, COLOR["rolled-back"])
        if incidents:
            _incident_lines(axes, run.incidents)
    return figure


def incident_marks(incidents: Sequence[Incident], limits: style.Span) -> list[Mark]:
    """Numbered badges; neighbours that would touch share one, such as 3–7."""
    unit = (limits[1] - limits[0]) / (style.WIDTH - style.LEFT - style.RIGHT)
    groups: list[list[Incident]] = []
    for incident in sorted((i for i in incidents if i.attempt is not None), key=_attempt):
        groups.append([incident])
        while len(groups) > 1 and _touch(_mark(groups[-2]), _mark(groups[-1]), unit):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_mark(group) for group in groups]


def window(incident: Incident, name: str) -> Markup:
    """Loss and gradient norm in the attempts before an incident, the last one marked."""
    rows = incident.window
    limits = (rows[0].attempt - 0.5, rows[-1].attempt + 0.5)
    losses, norms = [row.loss for row in rows], [row.grad_norm for row in rows]
    panels = [
        Panel("Loss", LOW, lambda axes: _window_line(axes, rows, losses, COLOR["loss"])),
        Panel("Gradient norm", LOW, lambda axes: _window_line(axes, rows, norms, COLOR["norm"])),
    ]
    return inline_svg(name, lambda: style.stack(panels, limits, width=230, left=40))


def _panels(run: Run) -> list[Panel]:
    steps, ratios = run.steps, run.steps.update_ratio
    accuracies = evaluation_points(run, "test_accuracy")[0]
    updates = Panel("Update / weight norm", LOW, lambda axes: _series(axes, run, ratios, COLOR["rate"]))
    panels = [
        (True, Panel("Loss", TALL, lambda axes: _loss(axes, run))),
        (True, Panel("Gradient norm", TALL, lambda axes: _grad_norm(axes, run))),
        (steps.clipped.any(), Panel("Steps clipped, %", LOW, lambda axes: _clipped(axes, run))),
        (np.isfinite(steps.lr).any(), Panel("Learning rate", LOW, lambda axes: _rate(axes, run))),
        (np.isfinite(ratios).any(), updates),
        (accuracies, Panel("Test accuracy, %", LOW, lambda axes: _accuracy(axes, run))),
    ]
    return [panel for occurs, panel in panels if occurs]


def _loss(axes: Axes, run: Run) -> None:
    steps = run.steps
    x, y = evaluation_points(run, "test_loss")
    style.value_axis(axes, np.concatenate((steps.loss, y)))
    style.line(axes, steps.attempt, steps.loss, COLOR["loss"])
    style.points(axes, x, y, COLOR["score"], "D", zorder=4)
    style.nonfinite_marks(axes, steps.attempt, steps.loss_nonfinite)


def _grad_norm(axes: Axes, run: Run) -> None:
    steps = run.steps
    style.value_axis(axes, steps.grad_norm)
    style.line(axes, steps.attempt, steps.grad_norm, COLOR["norm"])
    has_limit = np.isfinite(steps.clip_threshold)
    if has_limit.any():
        limit = envelope(steps.attempt[has_limit], steps.clip_threshold[has_limit], style.BUCKETS // 2)
        axes.plot(*limit, color=COLOR["clip"], linewidth=1.2, linestyle=(0, (4, 3)))
    style.nonfinite_marks(axes, steps.attempt, steps.grad_norm_nonfinite)


def _clipped(axes: Axes, run: Run) -> None:
    x, y = bucketed(run.steps.attempt, np.where(run.steps.clipped, 100.0, 0.0), 60, np.mean)
    axes.fill_between(x, y, step="mid", color=COLOR["clip"], alpha=0.35, linewidth=0)
    axes.step(x, y, where="mid", color=COLOR["clip"], linewidth=1.2)
    style.value_axis(axes, np.append(y, [0.0, 10.0]))


def _rate(axes: Axes, run: Run) -> None:
    steps = run.steps
    style.shade(axes, style.flag_spans(steps.attempt, steps.recovering), COLOR["recovery"])
    style.value_axis(axes, np.append(steps.lr, 0.0))
    style.line(axes, steps.attempt, steps.lr, COLOR["rate"], noisy=False)


def _accuracy(axes: Axes, run: Run) -> None:
    x, y = evaluation_points(run, "test_accuracy")
    style.value_axis(axes, np.array(y))
    axes.plot(x, y, color=COLOR["score"], marker="o", clip_on=False)


def _series(axes: Axes, run: Run, values: Floats, color: str) -> None:
    style.value_axis(axes, values)
    style.line(axes, run.steps.attempt, values, color)


def _checkpoints(axes: Axes, saved: Sequence[Checkpoint]) -> None:
    """Filled where one is still there, pale where newer ones took its place."""
    kinds = (
        (0, "danger", "x", 1.0, {"suspect", "rolled_back", "unconfirmed", "failed"}),
        (1, "warn", "D", 1.0, {"written"}),
        (2, "good", "D", 0.35, {"retired"}),
        (2, "good", "D", 1.0, {"good"}),
    )
    for row, color, marker, alpha, fates in kinds:
        places = [float(c.attempt) for c in saved if c.fate in fates and c.attempt is not None]
        style.points(axes, places, [row] * len(places), COLOR[color], marker, alpha=alpha, markersize=5)
    axes.set_ylim(-0.7, 2.7)
    axes.set_yticks([0, 1, 2], ["removed", "candidate", "good"])


def evaluation_points(run: Run, metric: str, over: str = "attempt") -> tuple[list[float], list[float]]:
    """Where, and what; an accuracy in per cent."""
    scale = 100.0 if metric.endswith("accuracy") else 1.0
    points = [(getattr(e, over), scale * e.metrics[metric]) for e in run.evaluations if metric in e.metrics]
    known = [(float(x), y) for x, y in points if x is not None and np.isfinite(y)]
    return [x for x, _ in known], [y for _, y in known]


def _incident_lines(axes: Axes, incidents: Sequence[Incident]) -> None:
    for color in (COLOR["warn"], COLOR["danger"]):
        places = sorted({i.attempt for i in incidents if i.attempt is not None and _color(i) == color})
        alpha = 0.75 if len(places) < CROWD else 0.25
        for place in places[:MOST_INCIDENT_LINES]:
            axes.axvline(place, color=color, linewidth=1, alpha=alpha, zorder=1.5)


def _badges(axes: Axes, marks: Sequence[Mark]) -> None:
    for mark in marks:
        axes.annotate(
            mark.label,
            (mark.x, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, style.TITLE - 3),
            textcoords="offset points",
            ha="center",
            va="center",
            fontweight="bold",
            color=COLOR["on-mark"],
            url=mark.target,
            bbox={"boxstyle": "round,pad=0.4,rounding_size=0.9", "fc": mark.color, "ec": "none"},
            annotation_clip=False,
        )


def _touch(left: Mark, right: Mark, unit: float) -> bool:
    widths = (BADGE_UNITS + DIGIT_UNITS * len(mark.label) for mark in (left, right))
    return right.x - left.x < sum(widths) / 2 * unit


def _attempt(incident: Incident) -> int:
    return incident.attempt or 0


def _mark(group: Sequence[Incident]) -> Mark:
    first, last = group[0], group[-1]
    worst = COLOR["danger"] if COLOR["danger"] in map(_color, group) else COLOR["warn"]
    label = str(first.id) if first is last else f"{first.id}–{last.id}"
    return Mark(x=float(_attempt(first)), label=label, target=f"#{first.anchor}", color=worst)


def _color(incident: Incident) -> str:
    return COLOR["danger" if incident.rolled_back or incident.halted else "warn"]


def _window_line(axes: Axes, rows: Sequence[WindowRow], values: Sequence[float | None], color: str) -> None:
    x = np.array([row.attempt for row in rows], dtype=np.float64)
    y: Floats = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    bad: Flags = np.array([value is not None and not np.isfinite(value) for value in values])
    known = np.isfinite(y)
    style.value_axis(axes, y)
    axes.plot(x[known], y[known], color=color, marker="o", markersize=2)
    if known[-1]:
        style.points(axes, x[-1:], y[-1:], COLOR["danger"], "o")
    style.nonfinite_marks(axes, x, bad)
