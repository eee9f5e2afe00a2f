"""Heat maps: a row for each layer or rank, a column for each stretch of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from jobs.report.formats import number, percent
from jobs.report.plot_style import FONT, TEXT_ON_PHONE, Panel, Span, stack
from jobs.report.series import Floats, Matrix, bucket_max, column_count
from jobs.report.svg import inline_svg
from jobs.report.words import layer_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MOST_ROWS = 400
MOST_COLUMNS = 260
SCALE = 16
"""Units above the map for its colour scale, beside those of a title."""
LABEL_UNITS = FONT * TEXT_ON_PHONE
LONGEST_LABEL = 18
SMALLEST = 1e-280  # matplotlib takes a colour scale below for empty
NONFINITE = "#e62938"
"""The one colour that is the same in light and dark: it is part of the picture, not of the page."""


def layers(matrix: Matrix, span: Span) -> Markup:
    """Gradient norm of each layer, logarithmic colours, in model order from top to bottom."""
    from matplotlib.colors import LogNorm

    matrix = _merged(matrix)
    names = [layer_name(name) for name in matrix.names]
    positive = matrix.values[np.isfinite(matrix.values) & (matrix.values > 0)]
    low, high = np.percentile(positive, (1, 99.8)) if len(positive) else (0.1, 1.0)
    low = max(float(low), SMALLEST)
    norm = LogNorm(low, max(float(high), 1.01 * low))
    return inline_svg("layers", lambda: _figure(matrix, names, span, norm, "gradient norm", number))


def ranks(matrix: Matrix, span: Span) -> Markup:
    """Each rank's share of the squared local gradient norms."""
    from matplotlib.colors import Normalize

    matrix = _merged(Matrix(matrix.attempts, matrix.names, shares(matrix.values)))
    return inline_svg(
        "ranks", lambda: _figure(matrix, [*matrix.names], span, Normalize(0, 1), "share", percent)
    )


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


def _figure(
    matrix: Matrix, names: list[str], span: Span, norm: Normalize, meaning: str, text: Callable[[float], str]
) -> Figure:
    import matplotlib as mpl

    labels = [_short(name) for name in names]
    rows = max(len(labels) * float(np.clip(400 / len(labels), 1.5, LABEL_UNITS)), 36)
    columns = column_count(matrix.attempts, span, MOST_COLUMNS)
    table = bucket_max(matrix.attempts, matrix.values, columns, span)

    # Unknown cells are transparent, non-finite ones are red.
    colors = mpl.colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0), over=NONFINITE)

    def draw(axes: Axes) -> None:
        image = axes.imshow(
            _drawable(table, norm),
            norm=norm,
            cmap=colors,
            aspect="auto",
            interpolation="none",
            extent=(*span, len(labels) - 0.5, -0.5),
        )
        every = max(1, int(np.ceil(LABEL_UNITS * len(labels) / rows - 1e-9)))
        axes.set_yticks(range(0, len(labels), every), labels[::every])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _scale_bar(image, norm, meaning, text)

    left = 12 + 0.6 * LABEL_UNITS * max(map(len, labels))
    return stack([Panel("", rows, draw)], span, head=SCALE, left=left)


def _drawable(table: Floats, norm: Normalize) -> Floats:
    """The table within the scale, non-finite cells above it."""
    low, high = float(norm.vmin or 0), float(norm.vmax or 1)
    known = np.where(np.isinf(table), 2 * high, np.clip(table, low, high))
    return np.ma.masked_where(np.isnan(table), known)


def _scale_bar(image: AxesImage, norm: Normalize, meaning: str, text: Callable[[float], str]) -> None:
    """The colours from low to high, with values at both ends and in the middle."""
    height = image.axes.bbox.height
    bar = image.axes.inset_axes((0.55, 1 + 26 / height, 0.4, 7 / height))
    scale = image.axes.figure.colorbar(image, cax=bar, orientation="horizontal")
    if scale.solids is not None:  # always: the image has no contours
        scale.solids.set_rasterized(True)
    scale.outline.set_visible(False)
    values = [float(norm.inverse(place)) for place in (0, 0.5, 1)]
    scale.set_ticks(values, labels=[text(float(f"{value:.2g}")) for value in values])
    scale.minorticks_off()
    bar.text(-0.03, 0.5, meaning, transform=bar.transAxes, ha="right", va="center")


def _short(label: str) -> str:
    """layer4.0.conv1 becomes l4.0.conv1: outer parts are shortened first, what distinguishes layers stays."""
    parts = label.split(".")
    for index, part in enumerate(parts[:-1]):
        if len(".".join(parts)) > LONGEST_LABEL:
            parts[index] = part[:1] + part[len(part.rstrip("0123456789")) :] if not part.isdigit() else part
    short = ".".join(parts)
    return short if len(short) <= LONGEST_LABEL else "…" + short[1 - LONGEST_LABEL :]
