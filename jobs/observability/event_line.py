"""An incident as one line, for a log or a stream of events."""

import math
from collections.abc import Sequence

from guard.records import Incident
from jobs.report.words import by_rate


def event(incident: Incident, places: Sequence[str] = ()) -> tuple[str, str]:
    """Level and text of an incident as one line, for a log or a stream of events.

    Args:
        incident: as the guard made it, or as it was read back.
        places: node and device of each rank, where known.
    """
    if by_rate(incident):
        lost = f"; rolled back {incident.steps_lost} steps" if incident.rolled_back else ""
        return "warning", f"step {incident.step}: {incident.reason}{lost}"
    value = "" if incident.value is None else f" {incident.value:.4g}"
    baseline = (
        f" (baseline {incident.baseline:.4g})"
        if incident.baseline is not None and math.isfinite(incident.baseline)
        else ""
    )
    text = f"step {incident.step}: {incident.verdict}, {incident.signal}{value}{baseline}"
    level, done = _event(incident, places)
    return level, f"{text}: {done}" if done else text


def named_ranks(ranks: Sequence[int], places: Sequence[str] = ()) -> str:
    """``rank 1 (node 3f2a, cpu)``, for each; rank -1 is unknown."""
    named = [f"rank {r} ({places[r]})" if 0 <= r < len(places) else f"rank {r}" for r in ranks if r >= 0]
    return ", ".join(named) or "an unknown rank"


def _event(incident: Incident, places: Sequence[str]) -> tuple[str, str]:
    """Level, and what was done."""
    if incident.signal == "replicas":
        return "error", incident.reason
    if incident.faulty_ranks:
        return "error", f"hardware fault on {named_ranks(incident.faulty_ranks, places)}; computed again"
    if incident.excluded_ranks:
        excluded = named_ranks(incident.excluded_ranks, places)
        return "warning", f"{excluded} excluded, because the data stays bad"
    if incident.excluded_samples:
        return "warning", incident.reason
    if incident.action == "rolled_back":
        back = f"rolled back {incident.steps_lost} steps to step {incident.rolled_back_to}"
        return "error", f"{_bad_rank(incident)}{back}{_bad_sample(incident)}"
    if incident.action == "skipped":
        return "warning", f"{_bad_rank(incident)}step skipped{_bad_sample(incident)}"
    if incident.action == "halted":
        return "error", f"halted, {incident.reason}"
    if incident.dropped_micro_batches or incident.verdict in ("vanishing", "warning"):
        return "warning", incident.reason
    return "warning", incident.action if incident.would is None else f"would {incident.would}"


def _bad_rank(incident: Incident) -> str:
    bad = len(incident.ranks) > 1 and incident.ranks[0].nonfinite
    return f"from rank {incident.ranks[0].rank}: " if bad else ""


def _bad_sample(incident: Incident) -> str:
    return f", bad sample {incident.bad_samples[0].sample}" if incident.bad_samples else ""
