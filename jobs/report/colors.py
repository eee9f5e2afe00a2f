"""The colours of the report and of the job page, as CSS variables; charts are drawn in the light ones."""

from __future__ import annotations

_COLORS = {
    "page": ("#f4f6f9", "#0e131a"),
    "card": ("#ffffff", "#161d27"),
    "edge": ("#e1e6ed", "#273140"),
    "ink": ("#18202c", "#e8edf4"),
    "muted": ("#5a6778", "#9aa8ba"),
    "grid": ("#e6eaf0", "#273140"),
    "loss": ("#2459d8", "#79a5ff"),
    "norm": ("#0a8270", "#3fcdb2"),
    "clip": ("#b0670a", "#f0b055"),
    "rate": ("#7b3fd0", "#bd97ff"),
    "score": ("#c0267e", "#ff86c4"),
    "good": ("#13794a", "#5fd79c"),
    "warn": ("#9a5b00", "#f2bb5f"),
    "danger": ("#c3232f", "#ff8087"),
    "on-mark": ("#ffffff", "#10151d"),
    "good-wash": ("#e0f5ea", "#12352a"),
    "warn-wash": ("#fdf0d9", "#3a2c12"),
    "danger-wash": ("#fde6e7", "#42191e"),
    "rolled-back": ("#e08a1e", "#f0a63c"),
    "recovery": ("#7b3fd0", "#bd97ff"),
    "bar": ("#dbe5fb", "#253a63"),
}
"""In light and in dark."""

LIGHT = {name: light for name, (light, _) in _COLORS.items()}
DARK = {name: dark for name, (_, dark) in _COLORS.items()}
PAPER = {
    **LIGHT,
    "page": "#ffffff",
    "edge": "#cfd6df",
    "ink": "#111820",
    "muted": "#4c5867",
    "grid": "#dde2e9",
}
