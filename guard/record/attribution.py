"""Where an anomaly came from: layers and ranks ordered by their share of the evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from guard.observe.watched import remapped
from guard.records import FirstMover, LayerEvidence, MovedWeight, RankEvidence, Verdict, WindowRow
from guard.types import Floats

TOP_LAYERS = 8
TOP_RANKS = 16
LOOK_BACK = 4
"""An incident began at most this many attempts before."""
ELEVATED = 0.7
"""A signal has moved from this fraction of the anomaly threshold on."""
RATE_JUMP = 3.0
"""A linear warm-up is at most twice its own median so far, and schedules otherwise move slower."""
_CAUSES = ("update_norm", "loss", "grad_norm")
"""Where two signals moved alike, the earlier of these explains the later."""
_DECAY = 0.98
_FOLD = 32
"""Steps whose norms are included in a baseline at once."""


class LayerHistory:
    """An exponential mean of each layer's norm over clean steps: the layer's baseline."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._mean: Floats | None = None
        self._recent: list[Floats] = []
        """What is not in the mean yet: one call for many steps costs less."""

    def follow(self, names: list[str], origins: Sequence[int]) -> None:
        """These are the layers from now on; ``origins``: the former index of each, or -1."""
        self._fold()
        self._names = names
        self._mean = None if self._mean is None else remapped(self._mean, origins)

    def accept(self, norms: Floats) -> None:
        """Includes the norms of a clean step; norms that are not finite (nothing is judged) are ignored."""
        self._recent.append(norms)
        if len(self._recent) == _FOLD:
            self._fold()

    def _fold(self) -> None:
        for norms in self._recent:
            if math.isfinite(norms.sum()):
                self._mean = norms if self._mean is None else self._mean + (1 - _DECAY) * (norms - self._mean)
        self._recent.clear()

    def rank(self, norms: Floats) -> list[LayerEvidence]:
        """The layers with the largest share of the squared norm, non-finite ones first."""
        finite, _ = _finite_squares(norms)
        order = sorted(range(len(norms)), key=lambda i: (math.isfinite(norms[i]), -finite[i]))
        return self._evidence(norms, order)

    def rank_faded(self, norms: Floats, first: int | None) -> list[LayerEvidence]:
        """The layers that have lost the largest part of their baseline; before them ``first``, if given."""
        growth = self._growth(norms)
        known = [i for i in range(len(norms)) if i != first and math.isfinite(growth[i])]
        order = sorted(known, key=lambda i: growth[i])
        return self._evidence(norms, order if first is None else [first, *order])

    def _growth(self, norms: Floats) -> Floats:
        """Norm over baseline; not finite where there is none."""
        self._fold()
        with np.errstate(all="ignore"):
            return norms / (np.zeros_like(norms) if self._mean is None else self._mean)

    def _evidence(self, norms: Floats, order: list[int]) -> list[LayerEvidence]:
        finite, total = _finite_squares(norms)
        growth = self._growth(norms)
        return [
            LayerEvidence(
                name=self._names[i],
                norm=float(norms[i]),
                share=float(finite[i]) / total if math.isfinite(norms[i]) else None,
                growth=None if self._mean is None or not self._mean[i] else float(growth[i]),
            )
            for i in order[:TOP_LAYERS]
        ]

    def state_dict(self) -> dict[str, Any]:
        self._fold()
        return {"mean": None if self._mean is None else self._mean.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        means = state["mean"]
        fits = means is not None and len(means) == len(self._names)
        self._mean = np.asarray(means, dtype=np.float64) if fits else None
        self._recent.clear()


def rank_moved(names: Sequence[str], distances: Floats) -> list[MovedWeight]:
    """The parameters that moved farthest, non-finite ones first."""
    finite, total = _finite_squares(distances)
    known = np.isfinite(distances)
    order = sorted(range(len(names)), key=lambda i: (known[i], -finite[i]))[:TOP_LAYERS]
    shares = [float(finite[i]) / total if known[i] else None for i in order]
    return [MovedWeight(names[i], float(distances[i]), share) for i, share in zip(order, shares, strict=True)]


def rank_ranks(losses: Floats, local_norms: Floats) -> list[RankEvidence]:
    """The worst ranks first: non-finite, then by share of the squared local norm, else of the loss."""
    taken = not np.isnan(local_norms).all()
    with np.errstate(all="ignore"):
        weight = local_norms**2 if taken else np.abs(losses)
        bad = ~np.isfinite(losses) | (~np.isfinite(local_norms) if taken else False)
        finite = np.where(np.isfinite(weight), weight, 0.0)
    total = float(finite.sum()) or 1.0
    order = np.lexsort((-finite, ~bad))[:TOP_RANKS].tolist()  # stable: of equal ranks the first
    return [
        RankEvidence(
            rank=r,
            loss=float(losses[r]),
            local_norm=float(local_norms[r]) if taken else None,
            nonfinite=bool(bad[r]),
            share=None if bad[r] else float(finite[r]) / total,
        )
        for r in order
    ]


def first_mover(window: Sequence[WindowRow], verdict: Verdict) -> FirstMover | None:
    """The signal that left its baseline first, of the last few attempts up to this one; None without any."""
    rows = list(window)[-LOOK_BACK:]
    elevated = [
        (row.attempt, -ratio, _CAUSES.index(signal))
        for row in rows
        for signal, ratio in (row.ratios or {}).items()
        if ratio >= ELEVATED
    ]
    if not elevated:
        return FirstMover(verdict.signal, rows[-1].attempt) if rows else None
    attempt, ratio, cause = min(elevated)
    return FirstMover(_CAUSES[cause], attempt, -ratio)


def jump_of_rate(window: Sequence[WindowRow], previous: float | None) -> str:
    """What to add to the reason where the update before had a rate far above those before it; else empty.

    Args:
        window: the attempts up to the incident.
        previous: the rate of the update before it.
    """
    known = [row.learning_rate for row in window if row.learning_rate]
    if previous is None or len(known) < 3:
        return ""
    usual = median(known)
    if not previous > RATE_JUMP * usual:
        return ""
    return (
        f"; the update before had a learning rate of {previous:.3g}, {previous / usual:.3g} times the usual"
    )


def _finite_squares(values: Floats) -> tuple[Floats, float]:
    """The squares, 0 for those that are not finite, and their sum, at least something to divide by."""
    with np.errstate(all="ignore"):
        squares = values * values
    finite = np.where(np.isfinite(squares), squares, 0.0)
    return finite, float(finite.sum()) or 1.0
