"""What becomes of a checkpoint after it was written: promoted, retired, deleted, set aside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from guard import GuardMetrics
from jobs.checkpoints.history import Event, History
from jobs.checkpoints.listing import checkpoint_folder, manifests, read_manifest
from jobs.checkpoints.manifest import Manifest
from jobs.run_dir.storage import Storage


@dataclass(frozen=True, slots=True)
class Policy:
    """Which checkpoints are kept, and when one is good.

    Attributes:
        keep: how many of the newest good ones stay.
        best: ``max:METRIC`` or ``min:METRIC``: the good one with the best value also stays.
        clean_steps: clean steps that must follow before a checkpoint is good.
    """

    keep: int = 3
    best: str | None = None
    clean_steps: int = 2


class Lifecycle:
    """Rank 0's work on the storage, counted in the metrics and recorded in the history."""

    def __init__(
        self, storage: Storage, policy: Policy, history: History, metrics: GuardMetrics | None
    ) -> None:
        self._storage, self._policy = storage, policy
        self._history, self._metrics = history, metrics

    def promote(self, step: int) -> None:
        """The candidate of this step becomes good, unless it could not be written."""
        name = checkpoint_folder(step)
        if name not in self._storage.names():
            return
        manifest = read_manifest(self._storage, name).model_copy(update={"health": "good"})
        self._storage.replace_manifest(name, manifest.render())
        self._count("good")
        self.record_good(step)

    def record_good(self, step: int) -> None:
        """The checkpoint of this step is good: older ones may be retired."""
        self._history.add("good", step)
        for old in retired(manifests(self._storage)[0], self._policy):
            self._remove(old, "retired")

    def record_failed(self, step: int) -> None:
        """It could not be written."""
        self._history.add("failed", step)
        self._count("failed")

    def remove_suspect(self, step: int) -> None:
        """Deletes a candidate that an anomaly followed."""
        if checkpoint_folder(step) in self._storage.names():
            self._remove(step, "suspect")
            self._count("suspect")

    def remove_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps: the run was rolled back."""
        for name in self._storage.names():
            if name > checkpoint_folder(step):
                self._remove(int(name.rpartition("-")[2]), "rolled_back")

    def remove_candidates(self) -> None:
        """Deletes what an earlier run left unconfirmed."""
        for manifest in manifests(self._storage)[0]:
            if manifest.health == "candidate":
                self._remove(manifest.step, "unconfirmed")

    def set_aside(self, name: str) -> None:
        """Renames a damaged checkpoint."""
        self._count("damaged")
        self._storage.set_aside(name)

    def _remove(self, step: int, event: Event) -> None:
        self._storage.remove(checkpoint_folder(step))
        self._history.add(event, step)

    def _count(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.checkpoint(outcome)


def retired(manifests: Sequence[Manifest], policy: Policy) -> list[int]:
    """The steps whose checkpoints may be deleted: not the newest few good ones, not the best, never the last
    good one.

    Args:
        manifests: of all checkpoints of the job, in any order. Candidates are never retired.
        policy: at least one good checkpoint stays, whatever ``keep`` is.
    """
    good = sorted((m for m in manifests if m.health == "good"), key=lambda m: m.step)
    stay = {m.step for m in good[-max(1, policy.keep) :]}
    if policy.best is not None and (winner := _best(good, policy.best)) is not None:
        stay.add(winner.step)
    return [m.step for m in good if m.step not in stay]


def _best(good: Sequence[Manifest], criterion: str) -> Manifest | None:
    """The best by a metric, the newest of equals; None where no checkpoint has a finite value of it."""
    direction, _, name = criterion.partition(":")
    sign = -1.0 if direction == "min" else 1.0
    measured = [m for m in good if math.isfinite(m.metrics.get(name, math.nan))]
    return max(measured, key=lambda m: (sign * m.metrics[name], m.step), default=None)
