"""From a matplotlib figure to a small inline SVG that takes its colours and font from the page.

A chart is drawn in the colours of `Role`; each stands for a placeholder that becomes a CSS variable, so that
one drawing serves light, dark and paper.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from markupsafe import Markup

from jobs.report.colors import LIGHT, Palette, roles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_PLACEHOLDERS = {name: f"#{index:06x}" for index, name in enumerate(roles(LIGHT), start=1)}
_VARIABLES = {color: f"var(--{name.partition(':')[2]})" for name, color in _PLACEHOLDERS.items()}
_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the font of the page
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,  # names come from the user's model
    "axes.unicode_minus": False,
    "path.simplify": False,  # the data were thinned already, spikes kept
    "image.composite_image": False,
}
_LOCK = threading.Lock()  # matplotlib's settings and Python's warning filters are global


@contextmanager
def drawing(name: str, colors: Palette = _PLACEHOLDERS) -> Iterator[None]:
    """Draw inside this; `name` must be unique in the page, ids in the SVG derive from it.

    `colors` says what the names of `Role` look like; by default as the page says.
    """
    import matplotlib as mpl
    from matplotlib.colors import get_named_colors_mapping

    with _LOCK, mpl.rc_context({**_SETTINGS, "svg.hashsalt": f"gradguard-{name}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for role, color in colors.items():
            get_named_colors_mapping()[role] = color
        yield


def inline_svg(figure: Figure) -> Markup:
    """The figure as an `<svg>` element; to be called inside `drawing`."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return Markup(_slim(buffer.getvalue()))  # safe: matplotlib escapes every text


def _slim(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.S)
    svg = re.sub(r'\s*<g id="[^"]*"/>', "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    svg = svg.replace(' target="_blank"', ' tabindex="-1"')  # links lead to a place in the page
    svg = re.sub(r"'DejaVu Sans'(, ?(?:'[^'\"]*'|[a-z-]+))*", "var(--font)", svg)
    svg = re.sub(r'(?<= d=")[^"]*', lambda path: _round(path[0]), svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda colour: _VARIABLES.get(colour[0], colour[0]), svg)
    return re.sub(r">\s+<", "><", svg).strip()


def _round(path: str) -> str:
    """Coordinates to a tenth of a unit (a unit is a CSS pixel), on one line."""
    path = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), path)
    return " ".join(path.split())
