"""Draws the figures of guard/README.md from real runs: a small network learns digits, and a fault strikes.

    python tests/benchmarks/draw_guard_figures.py [FOLDER]

Writes spike.svg (what happens at a spike) and modes.svg (the same fault in each mode). Takes some seconds.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

from guard import FaultConfig, FaultInjector, GradientGuard, GuardConfig, StepReport

FOLDER = Path(__file__).parents[2] / "guard" / "figures"
ATTEMPTS, FAULT = 160, 70
SPIKE = FaultConfig(kind="lr_spike", step=FAULT, factor=3000.0)
NAN = FaultConfig(kind="nan_loss", step=110)
QUICK = {"snapshot": {"every_steps": 20}, "recovery": {"cooldown_steps": 40}}
CEILING = 1e3
SIZE = (8, 5.2)


def train(mode: str, *what: FaultConfig) -> list[StepReport]:
    """One run, to its end or to the step at which the guard gives up."""
    torch.manual_seed(0)
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    inputs = (images / 16).float()
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002, fused=True)
    guard = GradientGuard(model, optimizer, GuardConfig.model_validate({"mode": mode, **QUICK}))
    faults = FaultInjector(what, model=model, optimizer=optimizer)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    reports = []
    for attempt in range(ATTEMPTS):
        faults.begin(guard.steps)
        rows = order[torch.arange(attempt * 64, attempt * 64 + 64) % len(order)]
        optimizer.zero_grad()
        guard.backward(faults.loss(nn.functional.cross_entropy(model(inputs[rows]), labels[rows])))
        reports.append(guard.step())
    last = guard.flush()
    return [*(r for r in reports if not r.pending), *([last] if last else [])]


def draw_spike(reports: Sequence[StepReport]) -> Figure:
    """Loss, gradient norm and learning rate around the spike, by attempt."""
    figure = Figure(figsize=SIZE, layout="constrained")
    losses, norms, rates = figure.subplots(3, sharex=True, height_ratios=(3, 3, 2))
    attempts = [r.attempt for r in reports]
    back = next(r for r in reports if r.action == "rolled_back")
    target = back.rolled_back_to
    assert target is not None
    losses.plot(attempts, [_shown(r.loss) for r in reports], color="C0", linewidth=1.2)
    losses.set(yscale="log", ylabel="loss")
    norms.plot(attempts, [_shown(r.grad_norm) for r in reports], color="C0", linewidth=1.2)
    limits = [math.nan if r.clip_threshold is None else r.clip_threshold for r in reports]
    norms.plot(attempts, limits, color="C2", linestyle="--", linewidth=1, label="clipped above")
    norms.set(yscale="log", ylabel="gradient norm")
    norms.legend(loc="upper right")
    in_force = [r.learning_rate for r in reports]
    rates.plot(attempts, in_force, color="C0", linewidth=1.2)
    rates.set(ylabel="learning rate", ylim=(0, max(in_force) * 1.2), xlabel="attempt")
    for axes in (losses, norms, rates):
        axes.axvspan(target + 0.5, back.attempt, color="C3", alpha=0.12, linewidth=0)
        axes.axvline(back.attempt, color="C3", linewidth=1)
        axes.set_xlim(30, ATTEMPTS)
    _note(losses, f"rolled back to step {target}", (target + 0.5, 5), (38, 60))
    _note(losses, f"{back.verdict.kind} of the {back.verdict.signal}", (back.attempt, 300), (82, 60))
    _note(rates, "halved, and back in 40 steps", (80, in_force[79]), (112, 0.0006))
    return figure


def draw_modes(runs: dict[str, Sequence[StepReport]]) -> Figure:
    """The loss of each mode, one below the other."""
    figure = Figure(figsize=SIZE, layout="constrained")
    for axes, (mode, reports) in zip(
        figure.subplots(len(runs), sharex=True, sharey=True), runs.items(), strict=True
    ):
        axes.plot([r.attempt for r in reports], [_shown(r.loss) for r in reports], linewidth=1.2)
        axes.set(yscale="log", ylabel=mode)
        for report in reports:
            if report.action in ("skipped", "rolled_back"):
                axes.axvline(report.attempt, color="C3", linewidth=1)
            elif report.incident:
                axes.axvline(report.attempt, color="C1", linewidth=1, linestyle=":")
    axes.set(xlabel="attempt", xlim=(30, ATTEMPTS))
    return figure


def _note(axes: Axes, text: str, at: tuple[float, float], place: tuple[float, float]) -> None:
    axes.annotate(text, at, place, arrowprops={"arrowstyle": "-", "color": "0.5"}, fontsize=9)


def _shown(value: float) -> float:
    return min(value, CEILING) if math.isfinite(value) else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "gradguard", "font.family": "sans-serif"}
    )
    runs = {mode: train(mode, SPIKE, NAN) for mode in ("exact", "deferred", "shadow", "off")}
    for mode, reports in runs.items():
        acted = [(r.attempt, r.step, r.action, r.verdict.kind) for r in reports if r.verdict.kind != "ok"]
        print(mode, acted[:12], f"final loss {reports[-1].loss:.3g}")
    for name, figure in {"spike": draw_spike(train("exact", SPIKE)), "modes": draw_modes(runs)}.items():
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        path.write_text(re.sub(r" ?\n(?=[LCQZz\"] ?)", " ", path.read_text()))  # one line for each path


if __name__ == "__main__":
    main()
