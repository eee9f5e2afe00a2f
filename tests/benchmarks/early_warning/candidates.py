"""What could announce an explosion: from a log to a score for each step; NaN where there is none."""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

from early_warning.log import COLUMNS, EVERY, WINDOW, Floats, Log
from guard.decide.climbing import Climbing

BASE, LAG, LEAST = 100, 10, 40
"""Steps of the level before, how long before, and with which a run's first level is known."""
ROWS = 20
"""The first steps of a run give no score."""
OURS = "loss climbs while the rate rises or updates are long"
RISES = "loss climbs while the rate rises"


def candidates(log: Log) -> dict[str, Floats]:
    """The score of each candidate, by name; higher is nearer to an explosion."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not known yet is NaN
        return _candidates(log)


def _candidates(log: Log) -> dict[str, Floats]:
    of = dict(zip(COLUMNS, np.moveaxis(log.cols, 2, 0), strict=True))
    grad, weight, moved = (np.sqrt(of[name].sum(1)) for name in ("grad", "weight", "moved"))
    found = {
        "curvature times rate": _curvature(log, of),
        "gradients against each other": -_mean(of["cosine"].sum(1), 25) / _mean(grad * _shifted(grad), 25),
        "update over weight": _mean(moved / weight, WINDOW),
        "update over weight rises": growth(moved / weight, 10),
        "loss rises": growth(np.maximum(log.loss, 1e-3), 10),
        "weights rise": growth(weight, 5),
        OURS: climbing(log, log.far),
        RISES: climbing(log, np.full(len(log.loss), np.nan)),
    }
    for name in ("update over weight", "update over weight rises", "weights rise"):
        found[f"{name}, and the loss climbs"] = np.where(_climbs(log.loss), found[name], np.nan)
    for kind, name in (("max", "activation maximum"), ("kurt", "activation kurtosis"), ("logit", "logit")):
        found[f"{name} rises"] = growth(_looked_at(log, kind), 5)
    found["own batch's loss falls less"] = _overshoot(log)
    return {name: np.where(np.arange(len(log.loss)) < ROWS, np.nan, score) for name, score in found.items()}


def growth(values: Floats, fast: int) -> Floats:
    """Logarithm of the recent mean over the median of the level before."""
    logs = np.log(np.maximum(values, 1e-30))
    padded = np.concatenate([np.full(BASE + LAG, np.nan), logs])
    before = np.lib.stride_tricks.sliding_window_view(padded, BASE)[: len(logs)]
    enough = np.isfinite(before).sum(1) >= LEAST // 2
    result = _mean(logs, fast) - np.nanmedian(np.where(enough[:, None], before, np.nan), 1)
    result[: LEAST + LAG] = np.nan
    return result


def climbing(log: Log, far: Floats) -> Floats:
    """The guard's own: its score on the steps on which it warns; it looks at ``far`` every ``WINDOW``."""
    followed, scores = Climbing(log.layers), np.zeros(len(log.loss))
    for step, (loss, rate) in enumerate(zip(log.loss.tolist(), log.lr.tolist(), strict=True)):
        moved = float(far[step]) if step % WINDOW == 0 else None
        climb = followed.observe(loss, rate, moved) if math.isfinite(loss) else None
        scores[step] = 0.0 if climb is None else climb.score
    return scores


def _climbs(losses: Floats) -> NDArray[np.bool_]:
    """Whether the mean of 25 is a deviation of the difference of two such means above its lowest so far."""
    padded = np.concatenate([np.full(WINDOW - 1, np.nan), losses])
    recent = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)
    level = recent.mean(1)
    roughness = np.sqrt(np.square(np.diff(recent, axis=1)).mean(1) / 2)
    return level - np.fmin.accumulate(level) > math.sqrt(2 / WINDOW) * roughness


def _curvature(log: Log, of: dict[str, Floats]) -> Floats:
    """<g - g', dw> / |dw|^2 times the rate; for Adam in the norm of its preconditioner."""
    norms = of["preconditioned"] if np.isfinite(of["preconditioned"]).any() else of["moved"]
    return _mean(of["curvature"].sum(1) * _shifted(log.lr), 10) / _mean(norms.sum(1), 10)


def _overshoot(log: Log) -> Floats:
    """The change of the batch's own loss by its step, over what its gradient predicts: -1 for a tiny rate,
    0 where the step is twice as long as the best one."""
    scores = np.full(len(log.loss), np.nan)
    if not len(log.rho):
        return scores
    step, before, after, predicted = log.rho.T
    change, expected = _mean(after - before, 3), _mean(predicted, 3)
    values = np.where(expected < 0, change / np.abs(expected), 1.0)
    for at, value in zip(step.astype(int), values, strict=True):
        scores[at + 1 : at + 1 + EVERY] = value
    return scores


def _looked_at(log: Log, kind: str) -> Floats:
    """The largest of all layers, held between two looks."""
    chosen = [place for place, key in enumerate(log.akeys) if key.endswith(f"|{kind}")]
    scores = np.full(len(log.loss), np.nan)
    if chosen:
        for at, value in zip(log.at.astype(int), np.nanmax(log.acts[:, chosen], axis=1), strict=True):
            scores[at : at + EVERY] = value
    return scores


def _shifted(values: Floats) -> Floats:
    return np.concatenate([[np.nan], values[:-1]])


def _mean(values: Floats, steps: int) -> Floats:
    """Exponential, over about so many steps; skips NaN."""
    result, mean = np.empty(len(values)), math.nan
    for place, value in enumerate(values.tolist()):
        if math.isfinite(value):
            mean = mean + (value - mean) / steps if math.isfinite(mean) else value
        result[place] = mean
    return result
