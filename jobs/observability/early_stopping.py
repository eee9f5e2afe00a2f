"""Whether evaluations still improve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jobs.errors import JobError
from jobs.spec.sections import EarlyStoppingSpec


class EarlyStopping:
    """Counts the evaluations since the best one; all ranks have the same metrics, so they agree.

    Args:
        spec: the section of the spec; None: never over.
    """

    def __init__(self, spec: EarlyStoppingSpec | None) -> None:
        self._spec = spec
        self._best: float | None = None
        self._since = 0

    @property
    def over(self) -> bool:
        """Whether ``patience`` evaluations in a row were no better than the best before them."""
        return self._spec is not None and self._since >= self._spec.patience

    def add(self, metrics: Mapping[str, float]) -> None:
        """The metrics of an evaluation. One that is not finite is no improvement.

        Raises:
            JobError: the metric of the spec is not among them.
        """
        if self._spec is None:
            return
        mode, _, name = self._spec.metric.partition(":")
        if name not in metrics:
            known = ", ".join(metrics)
            raise JobError(f"train.early_stopping.metric: {name!r} is not evaluated; there are {known}")
        value = metrics[name] if mode == "max" else -metrics[name]
        better = self._best is None or value > self._best + self._spec.min_delta
        if math.isfinite(value) and better:
            self._best, self._since = value, 0
        else:
            self._since += 1

    def line(self) -> str:
        """Why the training ends."""
        assert self._spec is not None
        return f"early stopping: no better {self._spec.metric} in {self._since} evaluations"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._since = state["best"], state["since"]
