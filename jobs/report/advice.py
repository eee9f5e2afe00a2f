"""What a person does after an incident, in a sentence or two."""

import math

from guard.records import Incident
from jobs.report.formats import listing, number, plural
from jobs.report.words import RATE_TOO_HIGH, by_rate

_OUTCOMES = {
    "recovered": "Nothing to do: the run recovered. If it comes back, lower optimizer.lr.",
    "recurred": "It came back: lower optimizer.lr or lengthen the warm-up, and look at the samples.",
}
_VERDICTS = {
    "nonfinite": "One such batch does no harm. If more follow, look at their samples, and train in fp32.",
    "drift": "Compare the evaluations before and after; if they got worse, lower optimizer.lr.",
    "vanishing": "Run `gradguard check --layers` on the spec: it shows where the gradient is lost.",
    "warning": "Watch the loss. If a spike follows, lower optimizer.lr or lengthen the warm-up.",
}


def advice(incident: Incident) -> str:
    """What to do next; empty where there is nothing to say."""
    if incident.halted:
        return (
            "The last good checkpoint is kept. Correct the cause (a lower optimizer.lr, a longer warm-up, "
            "the bad data), then resume the job."
        )
    if incident.would:
        return "Nothing was changed: set guard.mode to exact to let the guard act."
    for part in (_rate, _hardware, _data):
        if said := part(incident):
            return said
    ended = incident.outcome.kind if incident.outcome is not None else ""
    return _OUTCOMES.get(ended) or _VERDICTS.get(incident.verdict, "")


def _rate(incident: Incident) -> str:
    if RATE_TOO_HIGH not in incident.reason:
        compares = "Nothing to do: two learning rates were compared, and the run follows the better one."
        return compares if by_rate(incident) else ""
    if incident.verdict == "warning":
        return "Start again with the lower optimizer.lr that it names, or set guard.rate to act."
    factor = incident.recovery.rate_factor if incident.recovery is not None else None
    if factor is None or not math.isfinite(factor):
        return "Train the next run with a lower optimizer.lr."
    return f"Train the next run with {number(factor)} times this optimizer.lr: this one keeps that rate."


def _hardware(incident: Incident) -> str:
    if not incident.faulty_ranks:
        return ""
    known = [str(rank) for rank in incident.faulty_ranks if rank >= 0]
    where = f"rank {listing(known)}" if known else "the job"
    return f"Test the memory and the devices of the machines of {where}, and replace them if it comes back."


def _data(incident: Incident) -> str:
    if incident.excluded_ranks:
        ranks = listing([str(rank) for rank in incident.excluded_ranks])
        return f"Look at the part of the data that rank {ranks} reads, and at its machine."
    if incident.bad_samples:
        named = listing([str(bad.sample) for bad in incident.bad_samples[:3]])
        rest = len(incident.bad_samples) - 3
        more = f" and {plural(rest, 'more', 'more')}" if rest > 0 else ""
        return f"Look at sample {named}{more}: correct it, or remove it from the data."
    return ""
