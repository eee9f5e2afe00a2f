"""Writes the plots of ``check`` and ``replay``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.decide.replay import ReplayResult
from guard.logs.log import Row
from jobs.errors import JobError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURED = 25


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of the file's suffix.

    Raises:
        JobError: the format is unknown, or the file cannot be written.
    """
    from matplotlib.text import Text

    if path.is_dir() or not path.suffix:
        raise JobError(f"{path}: write a file's name that ends in .svg, .png or .pdf")
    for text in figure.findobj(Text):  # names of files, columns, classes: no formulas, and perhaps no text
        text.set_parse_math(False)
        text.set_text(text.get_text().encode("utf-8", "replace").decode())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a title in Chinese
            figure.savefig(path)
    except ValueError as error:
        raise JobError(f"{path}: {error}") from None
    except OSError as error:
        raise JobError(f"{error.filename or path}: {error.strerror}") from None


def draw_samples(batch: Any, classes: Sequence[str], path: Path) -> None:
    """Draws images of a batch as the model sees them, each scaled to its own range, with their labels.

    Raises:
        JobError: the batch has no images, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    images, labels = _images_of(batch)
    side = math.ceil(math.sqrt(len(images)))
    figure = Figure(figsize=(1.6 * side, 1.8 * side), layout="constrained")
    for at, image in enumerate(images):
        axes = figure.add_subplot(side, side, at + 1)
        low, high = float(image.min()), float(image.max())
        pixels = (image - low) / max(high - low, 1e-12)
        axes.imshow(pixels.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.axis("off")
        if at < len(labels):
            label = labels[at]
            axes.set_title(classes[label] if label < len(classes) else str(label), fontsize="x-small")
    save_figure(figure, path)


def _images_of(batch: Any) -> tuple[list[Any], list[int]]:
    """The first images of a batch, float [C, H, W] on the CPU, and their labels where it has them."""
    tensors = batch if isinstance(batch, list | tuple) else [batch]
    images = next((t for t in tensors if getattr(t, "ndim", 0) == 4 and t.shape[1] in (1, 3)), None)
    if images is None:
        raise JobError("--picture draws images, [N, 1 or 3, H, W]: the batch of this workload has none")
    labels = next((t for t in tensors if t.ndim == 1 and not t.is_floating_point()), None)
    return list(images[:PICTURED].detach().float().cpu()), [] if labels is None else labels.tolist()


def draw_alarms(rows: Sequence[Row], result: ReplayResult, title: str, path: Path) -> None:
    """Draws the loss of a log, or its gradient norm where it has no loss, and the alarms.

    Raises:
        JobError: the format is unknown, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    signal = "grad_norm" if result.columns["loss"] is None else "loss"
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_curve(rows, signal), linewidth=0.8, label=signal)
    for kind, color in (("spike", "C3"), ("nonfinite", "C1")):
        alarms = [alarm["step"] for alarm in result.alarms if alarm["verdict"] == kind]
        for step in alarms:
            axes.axvline(step, color=color, alpha=0.5, linewidth=1)
        if alarms:
            axes.plot([], [], color=color, label=f"{kind} ({len(alarms)})")
    axes.set(xlabel=result.columns["step"] or "row", ylabel=result.columns[signal] or "", title=title)
    axes.legend()
    save_figure(figure, path)


def _curve(rows: Sequence[Row], signal: str) -> tuple[list[float], list[float]]:
    """Steps and values, interrupted where the steps go back."""
    steps: list[float] = []
    values: list[float] = []
    for row in rows:
        if steps and row.step < steps[-1]:
            steps.append(row.step)
            values.append(math.nan)
        value = getattr(row, signal)
        steps.append(row.step)
        values.append(math.nan if value is None else value)
    return steps, values
