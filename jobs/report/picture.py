"""The training chart as a picture with its own caption, for a chat or a ticket, and the whole report."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.report import charts, words
from jobs.report.cards import most_severe
from jobs.report.colors import LIGHT as COLOR
from jobs.report.data import Run, read_run
from jobs.report.page import legend, write_page
from jobs.report.plot_style import FONT, LEFT, POINTS_PER_INCH, WIDTH
from jobs.report.summary import guard_words, headline, status_words, summarize
from jobs.report.svg import drawing
from jobs.run_dir.jsonl import write_bytes_atomic
from jobs.run_dir.reader import RunReader

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

PIXELS = 1760
"""Width: sharp on a screen of high density, about 100 kB."""
LINE_CHARACTERS, LINE_HEIGHT, TITLE_HEIGHT = 118, 13, 24
MOST_INCIDENTS = 3
MARKS = {
    "diamond": ("D", "score"),
    "dashes": ("dashes", "clip"),
    "rolled-back": ("patch", "rolled-back"),
    "recovery": ("patch", "recovery"),
    "cross": ("x", "danger"),
}
"""The marks of the page's legend: shape and colour."""


def write_report(job_dir: str | Path, to: Path | None = None) -> Path:
    """Write report.html and report.png from the job's files, any of which may be missing or cut.

    Args:
        job_dir: the folder of the job, or a bare journal of incidents.
        to: another file for the page; the picture is written beside it.

    Returns:
        The path of the page.
    """
    page = write_page(job_dir, to)
    write_picture(job_dir, page.with_suffix(".png"))
    return page


def write_picture(job_dir: str | Path, to: Path | None = None) -> Path:
    """Write report.png, or ``to``, from the job's files, any of which may be missing or cut. Returns its
    path.
    """
    path = to or RunReader(Path(job_dir)).folder.report.with_suffix(".png")
    write_bytes_atomic(path, draw(read_run(Path(job_dir))))
    return path


def draw(run: Run) -> bytes:
    """The chart with the run's name, how it ended, and its most severe incidents, as a PNG on white."""
    lines, status = caption(run), status_words(summarize(run).status)
    title = _drawable(textwrap.shorten(f"{run.name} – {status}", 90, placeholder=" …"))
    below = TITLE_HEIGHT + LINE_HEIGHT * len(lines)
    buffer = io.BytesIO()
    with drawing("picture"):
        figure = charts.training_figure(run, room=below + LINE_HEIGHT + 10)
        _write(figure, 16, title, fontsize=11, fontweight="bold", color=COLOR["ink"])
        _write(figure, TITLE_HEIGHT, "\n".join(lines), va="top", linespacing=LINE_HEIGHT / FONT / 1.17)
        _legend(figure, run, below + 4)
        dpi = PIXELS / WIDTH * POINTS_PER_INCH
        figure.savefig(buffer, format="png", dpi=dpi, facecolor=COLOR["card"], metadata={"Software": None})
    return buffer.getvalue()


def caption(run: Run) -> list[str]:
    """The lines under the title, wrapped."""
    summary = summarize(run)
    texts = [f"{headline(summary)} {guard_words(summary)}"]
    shown = most_severe(run.incidents, MOST_INCIDENTS)
    texts += [f"{i.id}  {words.title(i)}: {words.badge(i)}" for i in shown]
    return [line for text in texts for line in textwrap.wrap(_drawable(text), LINE_CHARACTERS)]


def _write(figure: Figure, below: float, text: str, **style: Any) -> None:
    figure.text(LEFT / WIDTH, 1 - below / (POINTS_PER_INCH * figure.get_figheight()), text, **style)


def _legend(figure: Figure, run: Run, below: float) -> None:
    """What the marks mean, as in the page; only what occurs."""
    occurring = [(_handle(mark), text) for mark, text in legend(run) if mark in MARKS]
    if occurring:
        handles, texts = zip(*occurring, strict=True)
        top = 1 - below / (POINTS_PER_INCH * figure.get_figheight())
        figure.legend(
            handles,
            texts,
            loc="upper left",
            bbox_to_anchor=(LEFT / WIDTH, top),
            ncols=len(texts),
            borderpad=0,
            borderaxespad=0,
            handlelength=1.6,
        )


def _handle(mark: str) -> Artist:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shape, color = MARKS[mark][0], COLOR[MARKS[mark][1]]
    if shape == "patch":
        return Patch(facecolor=color, alpha=0.3)
    if shape == "dashes":
        return Line2D([], [], color=color, linestyle=(0, (3, 2)))
    return Line2D([], [], color=color, marker=shape, linestyle="none")


def _drawable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
