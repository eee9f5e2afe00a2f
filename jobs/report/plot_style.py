"""The style of all charts: matplotlib settings, panels, scales, marks.

A chart is `WIDTH` units wide and scales with the page, which enlarges its text on a phone (`TEXT_ON_PHONE`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jobs.report.colors import LIGHT as COLOR
from jobs.report.series import Flags, Floats, bucketed, envelope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Span = tuple[float, float]
POINTS_PER_INCH = 72
WIDTH, LEFT, RIGHT, TITLE, FOOT = 600, 52, 14, 28, 44
FONT = 8
TEXT_ON_PHONE = 2.1
BUCKETS = 400
TALL, LOW = 125, 48
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the font of the page
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT,
    "text.parse_math": False,  # names come from the user's model
    "text.color": COLOR["muted"],
    "path.simplify": False,  # the data were thinned already, spikes kept
    "image.composite_image": False,
    "figure.dpi": POINTS_PER_INCH,
    "axes.unicode_minus": False,
    "axes.facecolor": "none",
    "axes.edgecolor": COLOR["grid"],
    **{f"axes.spines.{side}": False for side in ("top", "left", "right")},
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOR["grid"],
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT + 0.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": COLOR["ink"],
    "axes.labelpad": 9,
    "axes.labelcolor": COLOR["muted"],
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.frameon": False,
    "xtick.color": COLOR["muted"],
    "ytick.color": COLOR["muted"],
    **{f"{axis}tick.{kind}.size": 0 for axis in "xy" for kind in ("major", "minor")},
    "xtick.major.pad": 9,
    "ytick.major.pad": 6,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot of a stack: a title line, then `height` units of drawing."""

    title: str
    height: float
    draw: Callable[[Axes], None]


def stack(
    panels: Sequence[Panel],
    span: Span,
    *,
    axis_name: str = "step attempt",
    head: float = 0,
    width: float = WIDTH,
    left: float = LEFT,
) -> Figure:
    """Panels one below the other over the same x axis; `head` units stay free above the first."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    heights = [panel.height for panel in panels]
    height = head + FOOT + sum(heights) + TITLE * len(panels)
    figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH))
    room = {"left": left / width, "right": 1 - RIGHT / width, "bottom": FOOT / height}
    room |= {"top": 1 - (head + TITLE) / height, "hspace": TITLE * len(panels) / sum(heights)}
    found = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights, gridspec_kw=room)
    for axes, panel in zip(found[:, 0], panels, strict=True):
        axes.set_xlim(*span)
        panel.draw(axes)
        axes.set_title(panel.title)
    axes.set_xlabel(axis_name)
    axes.xaxis.set_major_locator(MaxNLocator(6 if width == WIDTH else 4, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return figure


def limits(x: Floats) -> Span:
    """From the first to the last of ascending places; never empty."""
    low, high = (float(x[0]), float(x[-1])) if len(x) else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def value_axis(axes: Axes, values: Floats) -> None:
    """A logarithmic axis where the finite values span much and all are positive, symmetric where not."""
    from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

    values = values[np.isfinite(values)]
    if not len(values):
        axes.set_yticks([])
        return
    low, high, middle = float(values.min()), float(values.max()), float(np.median(np.abs(values)))
    most = max(2, int(axes.bbox.height / 24))
    if low > 0 and high / low > 15:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.5)
        digits = (1, 2, 5) if 3 * np.log10(high / low) < most else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=digits, numticks=most))
    elif low <= 0 and max(abs(low), abs(high)) > 50 * middle > 0:
        axes.set_yscale("symlog", linthresh=middle)
        axes.set_yticks(sorted({low, 0.0, high}))
    else:
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def line(axes: Axes, x: Floats, y: Floats, color: str, *, noisy: bool = True) -> None:
    """A series. A long noisy one is a faint envelope, in which every spike shows, and its median."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if not len(x):
        return
    faint = len(x) > 4 * BUCKETS and noisy
    alpha, width = (0.4, 0.8) if faint else (1, 1.3)
    axes.plot(*envelope(x, y, BUCKETS), color=color, alpha=alpha, linewidth=width)
    if faint:
        axes.plot(*bucketed(x, y, BUCKETS // 2, np.median), color=color)


def points(axes: Axes, x: ArrayLike, y: ArrayLike, color: str, marker: str, **style: Any) -> None:
    """Marks without a line, that may reach over the edge."""
    axes.plot(x, y, color=color, marker=marker, linestyle="none", clip_on=False, **style)


def nonfinite_marks(axes: Axes, x: Floats, bad: Flags) -> None:
    """Crosses along the top edge where the value was not finite; never more than there is room for."""
    _, first = np.unique(np.round(x[bad] / (6 * _unit(axes))), return_index=True)
    places = x[bad][first]
    if len(places):
        top, along = np.full(len(places), 0.97), axes.get_xaxis_transform()
        points(axes, places, top, COLOR["danger"], "x", transform=along, markeredgewidth=1.5)


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
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [(float(x[start]), float(x[end - 1])) for start, end in edges.reshape(-1, 2)]


def shade(axes: Axes, spans: Sequence[Span], color: str) -> None:
    for low, high in thin_spans(spans, 2 * _unit(axes)):
        axes.axvspan(low, high, facecolor=color, edgecolor="none", alpha=0.16, zorder=0)


def _unit(axes: Axes) -> float:
    low, high = axes.get_xlim()
    return float((high - low) / axes.bbox.width)
