"""Which layer left its baseline first: the incident's own evidence is of its last attempt only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from guard.records import FirstLayer, Incident
from jobs.report.series import Floats, Matrix

LOOK_BACK = 16
"""An explosion begins at most this many attempts before the incident that ends it."""
USUAL_ROWS, FEWEST_ROWS = 64, 4
GREW = 3.0
"""From this multiple of its baseline on a layer has left it."""
OUTLIER = 6.0
"""And from this many deviations (of the logarithm, by the median absolute deviation) on."""


def with_first_layer(incident: Incident, layers: Matrix) -> Incident:
    """The incident with the layer that grew before it; unchanged where none did or nothing is known."""
    if incident.attempt is None or incident.verdict == "vanishing" or not len(layers.attempts):
        return incident
    began = incident.attempt - LOOK_BACK
    usual = layers.values[layers.attempts < began][-USUAL_ROWS:]
    before = (layers.attempts >= began) & (layers.attempts < incident.attempt)
    if len(usual) < FEWEST_ROWS:
        return incident
    level, spread = _level(usual)
    for attempt, norms in zip(layers.attempts[before], layers.values[before], strict=True):
        growth = _growth(norms, level, spread)
        if np.isfinite(growth).any():
            place = int(np.nanargmax(growth))
            found = FirstLayer(layers.names[place], float(growth[place]), int(incident.attempt - attempt))
            return replace(incident, first_layer=found)
    return incident


def _level(usual: Floats) -> tuple[Floats, Floats]:
    """Median and spread of the logarithm of each layer's norm; NaN where too few rows are finite."""
    logs = _logarithm(usual)
    few = np.isfinite(logs).sum(axis=0) < FEWEST_ROWS
    logs[:, few] = 0.0
    level = np.nanmedian(logs, axis=0)
    spread = 1.4826 * np.nanmedian(np.abs(logs - level), axis=0)
    return np.where(few, np.nan, level), np.maximum(spread, 0.05)


def _growth(norms: Floats, level: Floats, spread: Floats) -> Floats:
    """Each layer's norm over its baseline; NaN where that is not anomalous."""
    excess = _logarithm(norms) - level
    anomalous = (excess >= np.log(GREW)) & (excess >= OUTLIER * spread)
    with np.errstate(over="ignore"):
        return np.where(anomalous, np.exp(excess), np.nan)


def _logarithm(norms: Floats) -> Floats:
    known = np.isfinite(norms) & (norms > 0)
    return np.log(norms, out=np.full_like(norms, np.nan), where=known)
