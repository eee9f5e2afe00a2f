"""The training chart as a picture with words of its own, for a chat or a ticket."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.report import charts, words
from jobs.report.cards import gravest
from jobs.report.colors import LIGHT, Role, roles
from jobs.report.data import Run, read_run
from jobs.report.page import legend
from jobs.report.plot_style import WIDE
from jobs.report.summary import guard_words, headline, status_words, summarize
from jobs.report.svg import drawing
from jobs.run_dir.jsonl import write_bytes_atomic

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

PICTURE = "report.png"
DOTS_PER_INCH = 144
"""Two dots for a unit: sharp on a screen of high density, about 100 kB."""
LINE_CHARACTERS, LINE_HEIGHT, TITLE_HEIGHT = 118, 19, 34
MOST_INCIDENTS = 3
MARKS = {
    "diamond": ("D", Role.SCORE),
    "dashes": ("dashes", Role.CLIP),
    "rolled-back": ("patch", Role.ROLLED_BACK),
    "recovery": ("patch", Role.RECOVERY),
    "cross": ("x", Role.DANGER),
}
"""The marks of the page's legend: shape and colour."""


def write_picture(job_dir: str | Path) -> Path:
    """Write report.png from the job's files, any of which may be missing or cut. Returns its path."""
    path = Path(job_dir) / PICTURE
    write_bytes_atomic(path, draw(read_run(Path(job_dir))))
    return path


def draw(run: Run) -> bytes:
    """The chart with the run's name, how it ended, and its gravest incidents, as a PNG on white."""
    lines = caption(run)
    with drawing("picture", roles(LIGHT)):
        figure = charts.training_figure(run, WIDE, room=TITLE_HEIGHT + LINE_HEIGHT * (len(lines) + 1) + 14)
        _write(figure, _title(run), lines)
        _legend(figure, run, WIDE.font * 2 + TITLE_HEIGHT + LINE_HEIGHT * len(lines))
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", dpi=DOTS_PER_INCH, facecolor=LIGHT["card"], metadata={"Software": None}
        )
    return buffer.getvalue()


def caption(run: Run) -> list[str]:
    """The lines under the title, wrapped."""
    summary = summarize(run)
    told = [f"{headline(summary)} {guard_words(summary)}"]
    told += [
        f"{incident.id}  {words.title(incident)}: {words.badge(incident)}"
        for incident in gravest(run.incidents, MOST_INCIDENTS)
    ]
    return [line for text in told for line in textwrap.wrap(_drawable(text), LINE_CHARACTERS)]


def _title(run: Run) -> str:
    return _drawable(
        textwrap.shorten(f"{run.name} – {status_words(summarize(run).status)}", 90, placeholder=" …")
    )


def _write(figure: Figure, title: str, lines: list[str]) -> None:
    height = 72 * figure.get_size_inches()[1]
    left = WIDE.left / WIDE.width
    figure.text(left, 1 - 24 / height, title, fontsize=16, fontweight="bold", color=Role.INK)
    for index, line in enumerate(lines):
        place = 1 - (TITLE_HEIGHT + LINE_HEIGHT * (index + 0.7)) / height
        figure.text(left, place, line, fontsize=WIDE.font, color=Role.MUTED)


def _legend(figure: Figure, run: Run, below: float) -> None:
    """What the marks mean, as in the page; only what occurs."""
    occurring = [(_handle(mark), text) for mark, text in legend(run) if mark in MARKS]
    if occurring:
        height = 72 * figure.get_size_inches()[1]
        figure.legend(
            [handle for handle, _ in occurring],
            [text for _, text in occurring],
            loc="upper left",
            bbox_to_anchor=(WIDE.left / WIDE.width, 1 - (below - 16) / height),
            ncols=len(occurring),
            frameon=False,
            fontsize=WIDE.font - 1,
            labelcolor=Role.MUTED,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.6,
        )


def _handle(mark: str) -> Artist:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shape, color = MARKS[mark]
    if shape == "patch":
        return Patch(facecolor=color, alpha=0.3)
    if shape == "dashes":
        return Line2D([], [], color=color, linestyle=(0, (3, 2)))
    return Line2D([], [], color=color, marker=shape, linestyle="none", markersize=6)


def _drawable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
