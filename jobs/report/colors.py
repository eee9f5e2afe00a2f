"""The colours of the report and of the job page, as CSS variables; charts are drawn in the light ones."""

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

PAPER = {
    **LIGHT,
    "page": "#ffffff",
    "edge": "#cfd6df",
    "ink": "#111820",
    "muted": "#4c5867",
    "grid": "#dde2e9",
}
