"""Heat maps: a row for each layer or rank, a column for each stretch of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from jobs.report import plot_style as look
from jobs.report.colors import Role
from jobs.report.formats import percent
from jobs.report.plot_style import NARROW, POINTS_PER_INCH, Size
from jobs.report.series import Floats, Matrix, bucket_max, column_count
from jobs.report.svg import drawing, inline_svg
from jobs.report.words import layer_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

MOST_ROWS = 400
MOST_COLUMNS = 260
LABEL_PIXELS = 14
NONFINITE_RGBA = (0.90, 0.16, 0.22, 1.0)
"""The one colour that is the same in light and dark: it is part of the picture, not of the page."""


@dataclass(frozen=True, slots=True)
class Scale:
    """From value to colour, and how the legend words it."""

    norm: Normalize
    text: Callable[[float], str]
    meaning: str


def layers(matrix: Matrix, span: look.Span, size: Size) -> Markup:
    """Gradient norm of each layer, logarithmic colours, in model order from top to bottom."""
    from matplotlib.colors import LogNorm

    matrix = _merged(matrix)
    names = [layer_name(name) for name in matrix.names]
    positive = matrix.values[np.isfinite(matrix.values) & (matrix.values > 0)]
    low, high = np.percentile(positive, (1, 99.8)) if len(positive) else (0.1, 1.0)
    norm = LogNorm(float(low), max(float(high), 1.01 * float(low)))
    return _chart("layers", matrix, names, Scale(norm, look.tick, "gradient norm"), span, size)


def ranks(matrix: Matrix, span: look.Span, size: Size) -> Markup:
    """Each rank's share of the squared local gradient norms."""
    from matplotlib.colors import Normalize

    matrix = _merged(Matrix(matrix.attempts, matrix.names, shares(matrix.values)))
    scale = Scale(Normalize(0, 1), percent, "share")
    return _chart("ranks", matrix, list(matrix.names), scale, span, size)


def shares(norms: Floats) -> Floats:
    """Norms (time x ranks) as shares of their squared sum; what is not finite stays infinite.

    Where one rank is not finite, the others have no share.
    """
    bad = np.isinf(norms)
    known = np.where(bad, 0.0, np.nan_to_num(norms))
    largest = known.max(axis=1, keepdims=True)
    squares = np.square(known / np.where(largest > 0, largest, 1.0))
    divisible = (largest > 0) & ~bad.any(axis=1, keepdims=True) & ~np.isnan(norms)
    total = np.broadcast_to(squares.sum(axis=1, keepdims=True), squares.shape)
    result = np.divide(squares, total, out=np.full_like(squares, np.nan), where=divisible)
    return np.where(bad, np.inf, result)


def _merged(matrix: Matrix) -> Matrix:
    """More rows than can be seen are joined to groups of neighbours: the largest of each."""
    factor = -(-len(matrix.names) // MOST_ROWS)
    if factor <= 1:
        return matrix
    starts = range(0, len(matrix.names), factor)
    filled = np.where(np.isnan(matrix.values), -np.inf, matrix.values)
    groups = np.maximum.reduceat(filled, list(starts), axis=1)
    names = tuple(matrix.names[start] for start in starts)
    return Matrix(matrix.attempts, names, np.where(np.isneginf(groups), np.nan, groups))


def _chart(name: str, matrix: Matrix, labels: list[str], scale: Scale, span: look.Span, size: Size) -> Markup:
    columns = column_count(matrix.attempts, span, min(MOST_COLUMNS, int(size.plot_width / 2)))
    table = bucket_max(matrix.attempts, matrix.values, columns, span)
    longest = 15 if size is NARROW else 30
    labels = [_short(label, longest) for label in labels]
    with drawing(f"{name}-{size.name}"):
        figure, axes, bar = _frame(labels, size)
        axes.imshow(
            _colors(table, scale.norm),
            aspect="auto",
            interpolation="none",
            extent=(*span, len(labels) - 0.5, -0.5),
        )
        _label_rows(axes, labels, size)
        look.count_ticks(axes, size)
        axes.set_xlabel("step attempt", color=Role.MUTED, fontsize=size.font - 1)
        _scale_bar(bar, scale, size)
        return inline_svg(figure)


def _frame(labels: list[str], size: Size) -> tuple[Figure, Axes, Axes]:
    from matplotlib.figure import Figure

    plot_height = max(len(labels) * float(np.clip(520 / len(labels), 2, 18)), 36)
    head, foot = size.font + 26, 2 * size.font + 20
    height = plot_height + head + foot
    left = 14 + 0.6 * size.font * max(len(label) for label in labels)
    figure = Figure(figsize=(size.width / POINTS_PER_INCH, height / POINTS_PER_INCH), dpi=POINTS_PER_INCH)
    width = (size.width - left - size.right) / size.width
    axes = figure.add_axes((left / size.width, foot / height, width, plot_height / height), facecolor="none")
    bar_width = min(220.0, 0.5 * size.width)
    box = (1 - (bar_width + size.right) / size.width, 1 - 8 / height, bar_width / size.width, 8 / height)
    return figure, axes, figure.add_axes(box)


def _colors(table: Floats, norm: Normalize) -> Floats:
    """RGBA: unknown cells are transparent, non-finite ones are red."""
    import matplotlib as mpl

    finite = np.isfinite(table)
    safe = np.where(finite & (table > 0), table, norm.inverse(0))
    rgba: Any = mpl.colormaps["viridis"](np.clip(norm(safe), 0, 1))
    rgba[np.isnan(table)] = 0.0
    rgba[np.isinf(table)] = NONFINITE_RGBA
    return np.asarray(rgba, dtype=np.float64)


def _label_rows(axes: Axes, labels: list[str], size: Size) -> None:
    height = axes.get_window_extent().height
    every = max(1, int(np.ceil(LABEL_PIXELS * len(labels) / height)))
    axes.set_yticks(range(0, len(labels), every), labels[::every])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=size.font - 1.5, labelcolor=Role.MUTED, pad=5)


def _scale_bar(bar: Axes, scale: Scale, size: Size) -> None:
    """The colours from low to high, with values at both ends and in the middle."""
    import matplotlib as mpl

    colors = mpl.colormaps["viridis"](np.linspace(0, 1, 64))[np.newaxis]
    bar.imshow(colors, aspect="auto", interpolation="none", extent=(0, 1, 0, 1))
    bar.spines[:].set_visible(False)
    values = [float(scale.norm.inverse(place)) for place in (0, 0.5, 1)]
    bar.set_xticks((0, 0.5, 1), [scale.text(float(f"{value:.2g}")) for value in values])
    bar.set_yticks([0.5], [scale.meaning])
    bar.tick_params(length=0, labelsize=size.font - 1.5, labelcolor=Role.MUTED, pad=4)


def _short(label: str, longest: int) -> str:
    """layer4.0.conv1 becomes l4.0.conv1: outer parts go first, what tells layers apart stays."""
    parts = label.split(".")
    for index, part in enumerate(parts[:-1]):
        if len(".".join(parts)) > longest:
            parts[index] = part[:1] + part[len(part.rstrip("0123456789")) :] if not part.isdigit() else part
    short = ".".join(parts)
    return short if len(short) <= longest else "…" + short[1 - longest :]
