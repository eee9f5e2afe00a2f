"""Event files of TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.trackers.base import Values


class TensorBoardFiles:
    """Scalars ``train/loss`` and so on over attempts; incidents and the spec as texts.

    Files are no part of an event file: an artefact is its path, as a text.
    """

    def open(self, name: str, spec: Mapping[str, Any], folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / name), flush_secs=10)
        lines = "\n".join(f"    {key}: {value}" for key, value in spec.items())
        self._writer.add_text("spec", lines, 0)

    def values(self, at: int, values: Values) -> None:
        for name, value in values.items():
            tag = name if "/" in name else f"train/{name}"
            self._writer.add_scalar(tag, value, at)

    def event(self, at: int, level: str, title: str, text: str) -> None:
        self._writer.add_text(f"incidents/{level}", f"**{title}** {text}", at)
        self._writer.flush()

    def artefact(self, path: Path) -> None:
        self._writer.add_text(f"artefacts/{path.name}", str(path), 0)

    def close(self, status: str) -> None:
        self._writer.add_text("status", status, 0)
        self._writer.close()
