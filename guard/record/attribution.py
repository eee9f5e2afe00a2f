"""Who did it: layers and ranks ranked by their share of the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.types import Verdict

TOP_LAYERS = 8
LOOK_BACK = 4
"""An incident began at most so many attempts ago."""
ELEVATED = 0.7
"""From this share of what is news on a signal has moved."""
_CAUSES = ("update_norm", "loss", "grad_norm")
"""Where two signals moved alike, the earlier of these explains the later."""
_DECAY = 0.98


class LayerHistory:
    """An exponential mean of each layer's norm over clean steps: what "usual" means for a layer."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._mean: NDArray[np.float64] | None = None

    def accept(self, norms: NDArray[np.float64]) -> None:
        """Folds the norms of a clean step in; norms that are not finite (nothing is judged) are left out."""
        if not math.isfinite(norms.sum()):
            return
        if self._mean is None:
            self._mean = norms.copy()
        else:
            self._mean *= _DECAY
            self._mean += (1 - _DECAY) * norms

    def rank(self, norms: NDArray[np.float64]) -> list[dict[str, Any]]:
        """The layers with the largest share of the squared norm, non-finite ones first."""
        with np.errstate(all="ignore"):
            squares = norms * norms
        finite = np.where(np.isfinite(squares), squares, 0.0)
        return self._rows(
            norms, sorted(range(len(norms)), key=lambda i: (math.isfinite(norms[i]), -finite[i]))
        )

    def rank_faded(self, norms: NDArray[np.float64], first: int | None) -> list[dict[str, Any]]:
        """The layers that have lost the largest part of their usual norm; before them ``first``, if given."""
        growth = self._growth(norms)
        known = [i for i in range(len(norms)) if i != first and math.isfinite(growth[i])]
        order = sorted(known, key=lambda i: growth[i])
        return self._rows(norms, order if first is None else [first, *order])

    def _growth(self, norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Norm over usual norm; not finite where nothing is usual."""
        with np.errstate(all="ignore"):
            return norms / (np.zeros_like(norms) if self._mean is None else self._mean)

    def _rows(self, norms: NDArray[np.float64], order: list[int]) -> list[dict[str, Any]]:
        with np.errstate(all="ignore"):
            squares = norms * norms
        finite = np.where(np.isfinite(squares), squares, 0.0)
        total = float(finite.sum()) or 1.0
        growth = self._growth(norms)
        return [
            {
                "name": self._names[i],
                "norm": float(norms[i]),
                "share": float(finite[i]) / total if math.isfinite(norms[i]) else None,
                "growth": None if self._mean is None or not self._mean[i] else float(growth[i]),
            }
            for i in order[:TOP_LAYERS]
        ]

    def state_dict(self) -> dict[str, Any]:
        """The means, as a list."""
        return {"mean": None if self._mean is None else self._mean.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with the means of ``state_dict``."""
        means = state["mean"]
        self._mean = None if means is None else np.asarray(means, dtype=np.float64)


def rank_moved(names: Sequence[str], distances: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The parameters that moved farthest, non-finite ones first; ``share`` is of the squared distance."""
    with np.errstate(all="ignore"):
        squares = distances * distances
        finite = np.where(np.isfinite(squares), squares, 0.0)
    total = float(finite.sum()) or 1.0
    order = sorted(range(len(names)), key=lambda i: (math.isfinite(squares[i]), -finite[i]))
    return [
        {
            "name": names[i],
            "distance": float(distances[i]),
            "share": float(finite[i]) / total if math.isfinite(squares[i]) else None,
        }
        for i in order[:TOP_LAYERS]
    ]


def rank_ranks(losses: NDArray[np.float64], local_norms: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The ranks, worst first: non-finite, then by share of the squared local norm, else of the loss."""
    taken = not np.isnan(local_norms).all()
    with np.errstate(all="ignore"):
        weight = local_norms**2 if taken else np.abs(losses)
        bad = ~np.isfinite(losses) | (~np.isfinite(local_norms) if taken else False)
        finite = np.where(np.isfinite(weight), weight, 0.0)
    total = float(finite.sum()) or 1.0
    order = sorted(range(len(losses)), key=lambda r: (not bad[r], -finite[r]))
    return [
        {
            "rank": r,
            "loss": float(losses[r]),
            "local_norm": float(local_norms[r]) if taken else None,
            "nonfinite": bool(bad[r]),
            "share": None if bad[r] else float(finite[r]) / total,
        }
        for r in order
    ]


def first_mover(window: Sequence[Mapping[str, Any]], verdict: Verdict) -> dict[str, Any] | None:
    """The signal that left its level first, of the last few attempts up to this one.

    ``ratio`` is its excess in units of what is news. None where no loss or norm moved at all.
    """
    rows = list(window)[-LOOK_BACK:]
    elevated = [
        (row["attempt"], -ratio, _CAUSES.index(signal))
        for row in rows
        for signal, ratio in (row["ratios"] or {}).items()
        if ratio >= ELEVATED
    ]
    if not elevated:
        return {"signal": verdict.signal, "attempt": rows[-1]["attempt"], "ratio": None} if rows else None
    attempt, ratio, cause = min(elevated)
    return {"signal": _CAUSES[cause], "attempt": attempt, "ratio": -ratio}
