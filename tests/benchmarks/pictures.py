"""Pictures of the results."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

_LOST_TO_WELL = LinearSegmentedColormap.from_list("survival", ["#c0392b", "#f2c14e", "#2e8b57"])


_CEILING = 30.0


def explosion_picture(runs: dict[str, list[dict[str, Any]]], faults: list[str], path: Path) -> None:
    """Training loss of the guarded run and of the other one, with each fault and what the guard did.

    Args:
        runs: rows of metrics.jsonl, the guarded run first.
        faults: one label for each fault, in the order in which they strike.
    """
    (guarded, rows), (bare, lost) = runs.items()
    with rc_context({"svg.hashsalt": "gradguard", "font.size": 9}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(*_curve(lost), color="#e67e22", linewidth=4, alpha=0.55)
        axes.plot(*_curve(rows), color="#1f5f99", linewidth=1.3)
        last = rows[-1]
        _label(axes, guarded, (last["attempt"], last["loss"]), (0, 16), "#1f5f99")
        dead = next((i for i, row in enumerate(lost) if not math.isfinite(row["loss"])), None)
        if dead:
            at = lost[dead - 1]["attempt"], lost[dead - 1]["loss"]
            axes.plot(*at, marker="X", markersize=10, color="#c0392b")
            _label(axes, f"{bare} the guard:\nNaN weights, run lost", at, (-6, 42), "#c0392b")
        acted = [row for row in rows if row["action"] in ("skipped", "rolled_back")]
        for fault, row in zip(faults, acted, strict=False):
            _mark(axes, rows, row, fault)
        axes.set(
            xlabel="attempted step", ylabel="training loss", yscale="log", ylim=(0.1, 400), xlim=(0, None)
        )
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


def _curve(rows: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    losses = [min(row["loss"], _CEILING) if math.isfinite(row["loss"]) else math.nan for row in rows]
    return [row["attempt"] for row in rows], losses


def _label(axes: Any, text: str, at: tuple[float, float], offset: tuple[float, float], color: str) -> None:
    axes.annotate(text, at, offset, textcoords="offset points", ha="right", va="center", color=color)


def _mark(axes: Any, rows: list[dict[str, Any]], row: dict[str, Any], fault: str) -> None:
    """One fault and what the guard did; a rolled-back stretch is shaded."""
    at, target, done = row["attempt"], row["rolled_back_to"], "step skipped"
    if target is not None:
        done = f"rolled back to step {target}"
        since = max(
            earlier["attempt"] for earlier in rows if earlier["step"] == target and earlier["attempt"] < at
        )
        axes.axvspan(since, at, color="#c0392b", alpha=0.12, linewidth=0)
    axes.axvline(at, color="#2e8b57", linewidth=1, linestyle=":")
    axes.text(at + 2, 300, f"{fault}\n{done}", va="top", color="#1d6b40")


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


def detection_picture(tables: dict[str, Any], path: Path) -> None:
    """Each detector: what it caught, and its false alarms on healthy logs."""
    rows = next(iter(tables.values()))
    names = [row["detector"] for row in rows]
    caught = [int(row["caught"].split("/")[0]) for row in rows]
    of = rows[0]["caught"].split("/")[1]
    alarms = [row["false alarms a 1,000 steps"] for row in rows]
    with rc_context({"svg.hashsalt": "gradguard", "font.size": 8}):
        figure = Figure(figsize=(8, 0.6 + 0.32 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _bars(left, names, caught, f"labelled intervals caught, of {of}", str)
        _bars(right, names, alarms, "false alarms a 1,000 healthy steps", lambda value: f"{value:.3g}")
        figure.savefig(path, metadata={"Date": None})


def speed_picture(parts: dict[str, Any], path: Path) -> None:
    """Time as a ratio to the obvious baseline, measured in one run; below 1 we are faster."""
    ratios = {}
    for row in parts.get("hot path", {}).get("hot path", []):
        for what in ("nothing clipped", "every step clipped"):
            ratios[f"guard to clip_grad_norm_, {row['model']}, {what}"] = row[f"guard / clip, {what}"]
    for row in parts.get("end to end", {}).get("a job against a raw loop", []):
        ratios[f"job to a raw Ray Train loop, {row['seconds']}"] = row["ratio"]
    for rows in parts.get("checkpoint", {}).values():
        ratios["wait for a checkpoint to torch.save"] = rows[0]["ratio"]
    with rc_context({"svg.hashsalt": "gradguard", "font.size": 8}):
        figure = Figure(figsize=(8, 0.6 + 0.28 * len(ratios)), layout="constrained")
        axes = figure.subplots()
        _bars(
            axes,
            list(ratios),
            list(ratios.values()),
            "time, baseline = 1 (less is better)",
            lambda value: f"{value:.2f}",
        )
        axes.axvline(1.0, color="#555555", linewidth=0.8, linestyle="--")
        figure.savefig(path, metadata={"Date": None})


def _bars(axes: Any, names: list[str], values: list[float], title: str, show: Callable[[Any], str]) -> None:
    """One bar a name, the first at the top."""
    bars = axes.barh(range(len(names)), values, color="#2e8b57")
    axes.bar_label(bars, [show(value) for value in values], padding=2)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_title(title)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
