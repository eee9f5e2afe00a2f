"""The samples that made batches bad, over all incidents of a run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from guard.records import Incident
from jobs.report import words
from jobs.report.formats import listing

MOST_OFFENDERS = 20


@dataclass(frozen=True, slots=True)
class Offender:
    """One sample: how often it made a batch bad, by what, when last, and what it is."""

    sample: int
    times: int
    kinds: str
    steps: str
    content: str


def offenders(incidents: Sequence[Incident]) -> tuple[list[Offender], int]:
    """The samples that made most batches bad, the most frequent first; and how many more there are."""
    found: dict[int, list[tuple[Incident, str]]] = {}
    for incident in incidents:
        for bad in incident.bad_samples:
            found.setdefault(bad.sample, []).append((incident, bad.content))
    order = sorted(found, key=lambda sample: -len(found[sample]))
    rows = [_offender(sample, found[sample]) for sample in order[:MOST_OFFENDERS]]
    return rows, len(order) - len(rows)


def _offender(sample: int, seen: Sequence[tuple[Incident, str]]) -> Offender:
    kinds = Counter(f"{i.verdict} {words.signal_name(i.signal)}".strip() for i, _ in seen)
    steps = [str(i.step) for i, _ in seen if i.step is not None]
    content = next((text for _, text in seen if text), "")
    return Offender(sample, len(seen), listing(list(kinds)), ", ".join(steps[-5:]), content)
