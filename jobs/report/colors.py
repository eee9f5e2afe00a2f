"""The colours of the report, said once: the page has them as CSS variables, the picture as they are."""

from __future__ import annotations

Palette = dict[str, str]

LIGHT = {
    "page": "#f4f6f9",
    "card": "#ffffff",
    "edge": "#e1e6ed",
    "ink": "#18202c",
    "muted": "#5a6778",
    "grid": "#e6eaf0",
    "loss": "#2459d8",
    "norm": "#0a8270",
    "clip": "#b0670a",
    "rate": "#7b3fd0",
    "score": "#c0267e",
    "good": "#13794a",
    "warn": "#9a5b00",
    "danger": "#c3232f",
    "on-mark": "#ffffff",
    "good-wash": "#e0f5ea",
    "warn-wash": "#fdf0d9",
    "danger-wash": "#fde6e7",
    "rolled-back": "#e08a1e",
    "recovery": "#7b3fd0",
    "bar": "#dbe5fb",
}
"""By day; also the colours of the picture."""

DARK = {
    "page": "#0e131a",
    "card": "#161d27",
    "edge": "#273140",
    "ink": "#e8edf4",
    "muted": "#9aa8ba",
    "grid": "#273140",
    "loss": "#79a5ff",
    "norm": "#3fcdb2",
    "clip": "#f0b055",
    "rate": "#bd97ff",
    "score": "#ff86c4",
    "good": "#5fd79c",
    "warn": "#f2bb5f",
    "danger": "#ff8087",
    "on-mark": "#10151d",
    "good-wash": "#12352a",
    "warn-wash": "#3a2c12",
    "danger-wash": "#42191e",
    "rolled-back": "#f0a63c",
    "recovery": "#bd97ff",
    "bar": "#253a63",
}
"""For those who asked their system for a dark page."""

PAPER = {
    **LIGHT,
    "page": "#ffffff",
    "edge": "#cfd6df",
    "ink": "#111820",
    "muted": "#4c5867",
    "grid": "#dde2e9",
}
"""White ground, and text a shade darker."""


class Role:
    """Names of colours, for the charts. matplotlib knows them inside `drawing`."""

    INK = "gradguard:ink"
    MUTED = "gradguard:muted"
    GRID = "gradguard:grid"
    LOSS = "gradguard:loss"
    NORM = "gradguard:norm"
    CLIP = "gradguard:clip"
    RATE = "gradguard:rate"
    SCORE = "gradguard:score"
    GOOD = "gradguard:good"
    WARN = "gradguard:warn"
    DANGER = "gradguard:danger"
    ON_MARK = "gradguard:on-mark"
    ROLLED_BACK = "gradguard:rolled-back"
    RECOVERY = "gradguard:recovery"


def roles(palette: Palette) -> Palette:
    """A palette under the names of `Role`."""
    return {f"gradguard:{name}": color for name, color in palette.items()}
