"""Pictures of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

_LOST_TO_WELL = LinearSegmentedColormap.from_list("survival", ["#c0392b", "#f2c14e", "#2e8b57"])


def survival_picture(tasks: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Faults against methods, for each task: green where every run survived, red where none did.

    The number is the held-out loss against that of the clean run; a dash where a run was lost.
    """
    methods = list(dict.fromkeys(row["method"] for table in tasks.values() for row in table))
    cases = list(dict.fromkeys(row["case"] for table in tasks.values() for row in table))
    size = (3.0 + 0.75 * len(methods) * len(tasks), 1.8 + 0.3 * len(cases))
    with rc_context({"svg.hashsalt": "gradguard", "font.size": 8}):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
        for axes, (task, table) in zip(panels, tasks.items(), strict=True):
            _panel(axes, table, methods, cases)
            axes.set_title(f"{task}, {table[0]['seeds']} seeds")
        figure.savefig(path, metadata={"Date": None})


def _panel(axes: Any, table: list[dict[str, Any]], methods: list[str], cases: list[str]) -> None:
    share = np.full((len(cases), len(methods)), np.nan)
    for row in table:
        place = cases.index(row["case"]), methods.index(row["method"])
        share[place] = row["survived"] / row["seeds"]
        ratio = row["loss / clean"]
        axes.text(place[1], place[0], "–" if ratio is None else _short(ratio), ha="center", va="center")
    axes.imshow(share, cmap=_LOST_TO_WELL, vmin=0, vmax=1, aspect="auto", alpha=0.75)
    axes.set_xticks(range(len(methods)), methods, rotation=40, ha="right")
    axes.set_yticks(range(len(cases)), cases)
    axes.tick_params(length=0)


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}" if ratio < 1000 else ">999"
