"""Writes the plots of ``check`` and ``replay``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import JobError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of the file's suffix.

    Raises:
        JobError: the format is unknown, or the file cannot be written.
    """
    try:
        figure.savefig(path)
    except ValueError as error:
        raise JobError(f"{path}: {error}") from None
    except OSError as error:
        raise JobError(f"{error.filename or path}: {error.strerror}") from None
