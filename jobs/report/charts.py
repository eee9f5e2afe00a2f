"""The charts of a run. Each is a function from data to an inline SVG, for one `Size`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from jobs.report import plot_style as look
from jobs.report.checkpoints import Checkpoint
from jobs.report.colors import Role
from jobs.report.data import Run
from jobs.report.incidents import Incident, WindowRow
from jobs.report.plot_style import Panel, Size
from jobs.report.series import Flags, Floats, envelope, means
from jobs.report.svg import drawing, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BADGE_PIXELS, DIGIT_PIXELS = 14, 7
TALL, LOW = 150, 58
MOST_INCIDENT_LINES = 300
CROWD = 30


@dataclass(frozen=True, slots=True)
class Mark:
    """One or several incidents that share a place in the chart."""

    x: float
    label: str
    target: str
    color: str


def span(run: Run) -> look.Span:
    """The attempts that the charts cover."""
    attempts = run.steps.attempt
    if not len(attempts):
        return 0.0, 1.0
    low, high = float(attempts[0]), float(attempts[-1])
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def training(run: Run, size: Size) -> Markup:
    """Loss, gradient norm, clipping, learning rate and accuracy over the step attempts."""
    with drawing(f"training-{size.name}"):
        return inline_svg(training_figure(run, size))


def training_figure(run: Run, size: Size, room: float = 0.0) -> Figure:
    """The training chart, with `room` units free at its top; to be called inside `drawing`."""
    marks = incident_marks(run.incidents, span(run), size)
    head = room + (24 if marks else 4)
    figure = look.stack(_panels(run, size), size, span(run), head=head, axis_name="step attempt")
    for axes in figure.axes:
        look.shade(axes, run.rewound, Role.ROLLED_BACK, size)
        _incident_lines(axes, run.incidents)
    _badges(figure.axes[0], marks, size)
    return figure


def cost(run: Run, size: Size) -> Markup:
    """What a step takes, and what of it the guard takes."""
    steps = run.steps
    panels = [
        Panel("Step, ms", LOW, lambda axes: _milliseconds(axes, run, steps.step_seconds, Role.MUTED, size)),
        Panel("Guard, ms", LOW, lambda axes: _milliseconds(axes, run, steps.guard_seconds, Role.NORM, size)),
    ]
    with drawing(f"cost-{size.name}"):
        figure = look.stack(panels, size, span(run), head=4, axis_name="step attempt")
        for axes in figure.axes:
            look.shade(axes, run.rewound, Role.ROLLED_BACK, size)
        return inline_svg(figure)


def checkpoints(run: Run, size: Size) -> Markup:
    """Where the run could go back to: a row for good ones, for candidates, for those that were removed."""
    panel = Panel("", 54, lambda axes: _checkpoints(axes, run.checkpoints))
    with drawing(f"checkpoints-{size.name}"):
        figure = look.stack([panel], size, span(run), head=0, axis_name="step attempt")
        look.shade(figure.axes[0], run.rewound, Role.ROLLED_BACK, size)
        _incident_lines(figure.axes[0], run.incidents)
        return inline_svg(figure)


def incident_marks(incidents: Sequence[Incident], limits: look.Span, size: Size) -> list[Mark]:
    """Numbered badges; neighbours that would touch share one, such as 3–7."""
    pixel = (limits[1] - limits[0]) / size.plot_width
    groups: list[list[Incident]] = []
    for incident in sorted((i for i in incidents if i.attempt is not None), key=_attempt):
        groups.append([incident])
        while len(groups) > 1 and _touch(_mark(groups[-2]), _mark(groups[-1]), pixel):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_mark(group) for group in groups]


def window(incident: Incident, name: str) -> Markup:
    """Loss and gradient norm in the attempts before an incident, the last one marked."""
    size = Size(name="window", width=320, font=11, left=46, right=10, ticks=4)
    rows = incident.window
    limits = (rows[0].attempt - 0.5, rows[-1].attempt + 0.5)
    panels = [
        Panel("Loss", LOW, lambda axes: _window_line(axes, rows, [r.loss for r in rows], Role.LOSS, size)),
        Panel(
            "Gradient norm",
            LOW,
            lambda axes: _window_line(axes, rows, [r.grad_norm for r in rows], Role.NORM, size),
        ),
    ]
    with drawing(name):
        return inline_svg(look.stack(panels, size, limits, head=0, axis_name="step attempt"))


def _panels(run: Run, size: Size) -> list[Panel]:
    steps = run.steps
    panels = [
        Panel("Loss", TALL, lambda axes: _loss(axes, run, size)),
        Panel("Gradient norm", TALL, lambda axes: _grad_norm(axes, run, size)),
    ]
    if steps.clipped.any():
        panels.append(Panel("Steps clipped, %", LOW, lambda axes: _clipped(axes, run)))
    if np.isfinite(steps.lr).any():
        panels.append(Panel("Learning rate", LOW, lambda axes: _rate(axes, run, size)))
    if evaluation_points(run, "test_accuracy")[0]:
        panels.append(Panel("Test accuracy, %", LOW, lambda axes: _accuracy(axes, run)))
    return panels


def _loss(axes: Axes, run: Run, size: Size) -> None:
    steps = run.steps
    x, y = evaluation_points(run, "test_loss")
    known = np.concatenate((steps.loss[np.isfinite(steps.loss)], y))
    look.value_axis(axes, known, TALL)
    look.line(axes, steps.attempt, steps.loss, Role.LOSS, size)
    axes.plot(x, y, color=Role.SCORE, marker="D", markersize=5, linestyle="none", zorder=4, clip_on=False)
    look.nonfinite_marks(axes, steps.attempt, steps.loss_nonfinite, size)


def _grad_norm(axes: Axes, run: Run, size: Size) -> None:
    steps = run.steps
    known = steps.grad_norm[np.isfinite(steps.grad_norm)]
    look.value_axis(axes, known, TALL)
    look.line(axes, steps.attempt, steps.grad_norm, Role.NORM, size)
    has_limit = np.isfinite(steps.clip_threshold)
    if has_limit.any():
        x, y = envelope(steps.attempt[has_limit], steps.clip_threshold[has_limit], int(size.plot_width / 4))
        axes.plot(x, y, color=Role.CLIP, linewidth=1.2, linestyle=(0, (4, 3)))
    look.nonfinite_marks(axes, steps.attempt, steps.grad_norm_nonfinite, size)


def _clipped(axes: Axes, run: Run) -> None:
    x, y = means(run.steps.attempt, np.where(run.steps.clipped, 100.0, 0.0), 60)
    axes.fill_between(x, y, step="mid", color=Role.CLIP, alpha=0.35, linewidth=0)
    axes.step(x, y, where="mid", color=Role.CLIP, linewidth=1.2)
    axes.set_ylim(0, max(10.0, 1.15 * float(y.max())))
    axes.locator_params(axis="y", nbins=3)


def _rate(axes: Axes, run: Run, size: Size) -> None:
    steps = run.steps
    rates = steps.lr[np.isfinite(steps.lr)]
    recovering = look.flag_spans(steps.attempt, steps.recovering)
    look.shade(axes, recovering, Role.RECOVERY, size)
    look.line(axes, steps.attempt, steps.lr, Role.RATE, size, noisy=False)
    look.value_axis(axes, np.append(rates, 0.0), LOW)


def _accuracy(axes: Axes, run: Run) -> None:
    x, y = evaluation_points(run, "test_accuracy")
    axes.plot(x, y, color=Role.SCORE, marker="o", markersize=5, linewidth=1.4, clip_on=False)
    look.value_axis(axes, np.array(y), LOW)


def _milliseconds(axes: Axes, run: Run, seconds: Floats, color: str, size: Size) -> None:
    values = 1000 * seconds
    look.value_axis(axes, values[np.isfinite(values)], LOW)
    look.line(axes, run.steps.attempt, values, color, size)


def _checkpoints(axes: Axes, saved: Sequence[Checkpoint]) -> None:
    """Filled where one is still there, pale where newer ones took its place."""
    looks = (
        (0, Role.DANGER, "x", 1.0, {"suspect", "undone", "unconfirmed", "failed"}),
        (1, Role.WARN, "D", 1.0, {"written"}),
        (2, Role.GOOD, "D", 0.35, {"retired"}),
        (2, Role.GOOD, "D", 1.0, {"good"}),
    )
    for row, color, marker, alpha, fates in looks:
        places = [float(c.attempt) for c in saved if c.fate in fates and c.attempt is not None]
        heights = [row] * len(places)
        axes.plot(
            places,
            heights,
            color=color,
            marker=marker,
            alpha=alpha,
            markersize=7,
            linestyle="none",
            clip_on=False,
        )
    axes.set_ylim(-0.7, 2.7)
    axes.set_yticks([0, 1, 2], ["removed", "candidate", "good"])


def evaluation_points(run: Run, metric: str) -> tuple[list[float], list[float]]:
    """Where, and what; an accuracy in per cent."""
    scale = 100.0 if metric.endswith("accuracy") else 1.0
    points = [(e.attempt, scale * e.metrics[metric]) for e in run.evaluations if metric in e.metrics]
    finite = [(float(x), y) for x, y in points if np.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]


def _incident_lines(axes: Axes, incidents: Sequence[Incident]) -> None:
    for color in (Role.WARN, Role.DANGER):
        places = sorted({i.attempt for i in incidents if i.attempt is not None and _color(i) == color})
        axes.vlines(
            places[:MOST_INCIDENT_LINES],
            0,
            1,
            transform=axes.get_xaxis_transform(),
            color=color,
            linewidth=1,
            alpha=0.75 if len(places) < CROWD else 0.25,
            zorder=1.5,
        )


def _badges(axes: Axes, marks: Sequence[Mark], size: Size) -> None:
    for mark in marks:
        axes.annotate(
            mark.label,
            (mark.x, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, size.font + 18),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size.font - 1.5,
            fontweight="bold",
            color=Role.ON_MARK,
            url=mark.target,
            bbox={
                "boxstyle": "round,pad=0.35,rounding_size=0.8",
                "facecolor": mark.color,
                "edgecolor": "none",
            },
            annotation_clip=False,
        )


def _touch(left: Mark, right: Mark, pixel: float) -> bool:
    widths = (BADGE_PIXELS + DIGIT_PIXELS * len(mark.label) for mark in (left, right))
    return right.x - left.x < sum(widths) / 2 * pixel


def _attempt(incident: Incident) -> int:
    return incident.attempt or 0


def _mark(group: Sequence[Incident]) -> Mark:
    first, last = group[0], group[-1]
    worst = Role.DANGER if any(_color(incident) == Role.DANGER for incident in group) else Role.WARN
    label = str(first.id) if first is last else f"{first.id}–{last.id}"
    return Mark(x=float(_attempt(first)), label=label, target=f"#incident-{first.id}", color=worst)


def _color(incident: Incident) -> str:
    return Role.DANGER if incident.rolled_back or incident.halted else Role.WARN


def _window_line(
    axes: Axes, rows: Sequence[WindowRow], values: Sequence[float | None], color: str, size: Size
) -> None:
    x = np.array([row.attempt for row in rows], dtype=np.float64)
    y: Floats = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    bad: Flags = np.array([value is not None and not np.isfinite(value) for value in values])
    known = np.isfinite(y)
    look.value_axis(axes, y[known], LOW)
    axes.plot(x[known], y[known], color=color, linewidth=1.4, marker="o", markersize=2.5)
    if known[-1]:
        axes.plot(x[-1:], y[-1:], color=Role.DANGER, marker="o", markersize=6, linestyle="none")
    look.nonfinite_marks(axes, x, bad, size)
