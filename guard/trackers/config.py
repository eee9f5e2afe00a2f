"""The options of one tracker."""

from __future__ import annotations

import importlib.util
from typing import Literal

from pydantic import Field, PositiveInt

from guard.config import Config


class TrackConfig(Config):
    """One tracker. One that fails never stops a training; it is counted."""

    kind: Literal["csv", "tensorboard", "mlflow", "wandb", "trackio"]
    """``csv`` needs nothing. The others need ``pip install "gradguard[KIND]"``."""

    folder: str | None = Field(default=None, min_length=1)
    """Where files are written: those of ``csv`` and ``tensorboard``, and what ``wandb`` keeps offline.
    Default: the folder ``track`` of the job, or of the working directory."""

    project: str = Field(default="gradguard", min_length=1)
    """The project of ``wandb`` and ``trackio``, the experiment of ``mlflow``."""

    url: str | None = Field(default=None, min_length=1)
    """The tracking URI of ``mlflow``. Default: ``$MLFLOW_TRACKING_URI``."""

    offline: bool = False
    """``wandb``: keep everything in ``folder``; ``wandb sync`` uploads it."""

    every: PositiveInt = 10
    """Attempts between two points; an anomalous attempt is always one."""

    artefacts: bool = True
    """Whether spec, incidents, report and the newest good checkpoint are uploaded at the end."""

    def missing(self) -> str | None:
        """What to install before it can be used here; None where that is there."""
        if self.kind == "csv" or importlib.util.find_spec(self.kind) is not None:
            return None
        return f'{self.kind} is not installed here: pip install "gradguard[{self.kind}]"'
