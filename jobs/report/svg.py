"""From a matplotlib figure to a small inline SVG that takes its colours, font and text size from the page.

A chart is drawn in the light colours; each becomes a CSS variable, so that one drawing serves light, dark and
paper.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from jobs.report.colors import LIGHT
from jobs.report.plot_style import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VARIABLES = {color: f"var(--{name})" for name, color in LIGHT.items()}
_LOCK = threading.Lock()  # matplotlib's settings and Python's warning filters are global


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Draw inside this; `name` must be unique in the page, ids in the SVG derive from it."""
    import matplotlib as mpl

    with _LOCK, mpl.rc_context({**STYLE, "svg.hashsalt": f"gradguard-{name}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with np.errstate(over="ignore"):  # ticks beyond an axis that ends near the largest float
            yield


def inline_svg(name: str, draw: Callable[[], Figure]) -> Markup:
    """What `draw` draws as an `<svg>` element; `name` must be unique in the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with drawing(name):
        draw().savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return Markup(_slim(buffer.getvalue()))  # safe: matplotlib escapes every text


def _slim(svg: str) -> str:
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg[svg.index("<svg") :], count=1, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"(/?)>', r"<g\1>", svg)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    svg = svg.replace(' target="_blank"', ' tabindex="-1"')  # links lead to a place in the page
    svg = re.sub(r'(?<=<text style=")[^"]*', lambda style: _page_font(style[0]), svg)
    svg = re.sub(r'(?<= d=")[^"]*', lambda path: _round(path[0]), svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda color: _VARIABLES.get(color[0], color[0]), svg)
    return re.sub(r">\s+<", "><", svg).strip()


def _page_font(style: str) -> str:
    style = re.sub(r"[\d.]+px", r"calc(\g<0> * var(--text))", style)
    return re.sub(r"'DejaVu Sans'[^;]*", "var(--font)", style)


def _round(path: str) -> str:
    """Coordinates to a tenth of a unit, on one line."""
    path = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), path)
    return " ".join(path.split())
