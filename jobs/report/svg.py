"""From a matplotlib figure to a small inline SVG that takes its colours and font from the page.

A chart is drawn in the colours of `Role`; each is a placeholder that becomes a CSS variable, so that
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Role:
    """Placeholder colours; the page says what they look like."""

    INK = "#000001"
    MUTED = "#000002"
    GRID = "#000003"
    LOSS = "#000004"
    NORM = "#000005"
    CLIP = "#000006"
    RATE = "#000007"
    SCORE = "#000008"
    DANGER = "#000009"
    WARN = "#00000a"
    ON_MARK = "#00000b"
    REWOUND = "#00000c"
    RECOVERY = "#00000d"


_VARIABLES = {
    value: f"var(--{name.lower().replace('_', '-')})"
    for name, value in vars(Role).items()
    if not name.startswith("_")
}
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
def drawing(name: str) -> Iterator[None]:
    """Draw inside this; `name` must be unique in the page, ids in the SVG derive from it."""
    import matplotlib as mpl

    with _LOCK, mpl.rc_context({**_SETTINGS, "svg.hashsalt": f"gradguard-{name}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
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
