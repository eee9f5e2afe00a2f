"""The look that all charts share: sizes, scales, ticks, marks. One unit is one CSS pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jobs.report.colors import Role
from jobs.report.formats import count, number
from jobs.report.series import Flags, Floats, envelope, medians

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS_PER_INCH = 72
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Size:
    """A chart is drawn once for wide screens and paper, and once for a phone."""

    name: str
    width: float
    font: float
    left: float
    right: float
    ticks: int

    @property
    def plot_width(self) -> float:
        return self.width - self.left - self.right


WIDE = Size(name="wide", width=880, font=12, left=58, right=14, ticks=9)
NARROW = Size(name="narrow", width=350, font=11.5, left=44, right=8, ticks=5)


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot of a stack: a title line, then `height` units of drawing."""

    title: str
    height: float
    draw: Callable[[Axes], None]


def stack(panels: Sequence[Panel], size: Size, span: Span, head: float, axis_name: str) -> Figure:
    """Panels one below the other over the same x axis; `head` units stay free above the first."""
    from matplotlib.figure import Figure

    title_height, gap, foot = size.font + 10, 12, 2 * size.font + 20
    height = head + foot + sum(panel.height + title_height for panel in panels) + gap * (len(panels) - 1)
    figure = Figure(figsize=(size.width / POINTS_PER_INCH, height / POINTS_PER_INCH), dpi=POINTS_PER_INCH)
    top = height - head
    for panel in panels:
        bottom = top - title_height - panel.height
        box = (size.left / size.width, bottom / height, size.plot_width / size.width, panel.height / height)
        axes = figure.add_axes(box, facecolor="none")
        axes.set_xlim(*span)
        panel.draw(axes)
        plain(axes, size, panel.title, last=panel is panels[-1], axis_name=axis_name)
        top = bottom - gap
    return figure


def plain(axes: Axes, size: Size, title: str, *, last: bool, axis_name: str = "") -> None:
    """Only a base line, faint horizontal lines and small labels."""
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set(color=Role.GRID, linewidth=1)
    axes.tick_params(which="both", length=0, labelsize=size.font - 1, labelcolor=Role.MUTED, pad=5)
    axes.tick_params(axis="x", labelbottom=last)
    axes.grid(axis="y", color=Role.GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.text(0, 1, title, transform=_above(axes, 7), color=Role.INK, fontsize=size.font, fontweight="bold")
    count_ticks(axes, size)
    if last:
        axes.set_xlabel(axis_name, color=Role.MUTED, fontsize=size.font - 1, labelpad=4)


def count_ticks(axes: Axes, size: Size) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(size.ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(round(value))))


def value_axis(axes: Axes, values: Floats, height: float) -> None:
    """A logarithmic axis where the values span much and all are positive, symmetric where not."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    if not len(values):
        axes.set_yticks([])
        return
    low, high, most = float(values.min()), float(values.max()), max(2, int(height / 26))
    if low > 0 and high / low > 15:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.5)
        axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high, most)))
    elif low <= 0 and max(abs(low), abs(high)) > 50 * _middle(values) > 0:
        axes.set_yscale("symlog", linthresh=_middle(values))
        axes.set_yticks(sorted({low, 0.0, high}))
    else:
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers from low to high: the 1-2-5 series, else 1-5, else powers of ten."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 5), (1,)):
        ticks = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in digits]
        ticks = [value for value in ticks if low <= value <= high]
        if len(ticks) <= most:
            break
    return ticks[:: -(-len(ticks) // most) or 1]


def line(axes: Axes, x: Floats, y: Floats, color: str, size: Size, *, noisy: bool = True) -> None:
    """A series. A long noisy one is a faint envelope, in which every spike shows, and its median."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if not len(x):
        return
    buckets = int(size.plot_width / 2)
    if len(x) <= 4 * buckets or not noisy:
        axes.plot(*envelope(x, y, buckets), color=color, linewidth=1.3, solid_joinstyle="round")
        return
    axes.plot(*envelope(x, y, buckets), color=color, linewidth=0.8, alpha=0.4)
    axes.plot(*medians(x, y, buckets // 2), color=color, linewidth=1.5)


def nonfinite_marks(axes: Axes, x: Floats, bad: Flags, size: Size) -> None:
    """Crosses along the top edge where the value was not finite; never more than there is room for."""
    _, first = np.unique(np.round(x[bad] / (6 * _pixel(axes, size))), return_index=True)
    places = x[bad][first]
    if len(places):
        axes.plot(
            places,
            np.full(len(places), 0.97),
            transform=axes.get_xaxis_transform(),
            color=Role.DANGER,
            marker="x",
            markersize=6,
            markeredgewidth=1.8,
            linestyle="none",
            clip_on=False,
        )


def tick(value: float) -> str:
    """Short: 0.1, 10, 20k, 1e-4."""
    if value and not 1e-3 <= abs(value) < 1e6:
        exponent = math.floor(math.log10(abs(value)))
        mantissa = f"{value / 10.0**exponent:.3g}" if exponent > -300 else "0"
        return f"{mantissa}e{exponent}"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else number(value)


def thin_spans(spans: Sequence[Span], least: float) -> list[Span]:
    """Spans that touch at the scale of `least` are one; a short one is widened to it."""
    merged: list[Span] = []
    for low, high in sorted(spans):
        high = max(high, low + least)
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def flag_spans(x: Floats, flags: Flags) -> list[Span]:
    """Where a flag holds without a break, from its first x to its last."""
    if not flags.any():
        return []
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [(float(x[start]), float(x[end - 1])) for start, end in edges.reshape(-1, 2)]


def shade(axes: Axes, spans: Sequence[Span], color: str, size: Size, alpha: float = 0.16) -> None:
    for low, high in thin_spans(spans, 2 * _pixel(axes, size)):
        axes.axvspan(low, high, facecolor=color, edgecolor="none", alpha=alpha, zorder=0)


def _pixel(axes: Axes, size: Size) -> float:
    low, high = axes.get_xlim()
    return (high - low) / size.plot_width


def _above(axes: Axes, units: float) -> object:
    from matplotlib.transforms import ScaledTranslation

    shift = ScaledTranslation(0, units / POINTS_PER_INCH, axes.figure.dpi_scale_trans)
    return axes.transAxes + shift


def _middle(values: Floats) -> float:
    return float(np.median(np.abs(values)))
