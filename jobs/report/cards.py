"""Incidents as the page shows them: a card with all its evidence, or one line where there are many."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from guard.records import Incident
from jobs.report import charts, words
from jobs.report.advice import advice
from jobs.report.formats import UNKNOWN, count, number, runs
from jobs.run_dir.incidents import severity

MOST_CARDS = 24
MOST_LINES = 1500


@dataclass(frozen=True, slots=True)
class Line:
    """One incident in the table of those that have no card."""

    incident: Incident
    title: str
    badge: str
    tone: str


@dataclass(frozen=True, slots=True)
class Card(Line):
    """One incident with its evidence."""

    story: str
    facts: list[tuple[str, str]]
    window: Markup | None
    window_words: str
    samples: str
    advice: str


def arrange(incidents: Sequence[Incident], total: int) -> tuple[list[Card], list[Line], int]:
    """The most severe incidents as cards, others as lines, and how many of the total are only in the file."""
    chosen = set(_most_severe(incidents, MOST_CARDS))
    cards = [card(incidents[index]) for index in sorted(chosen)]
    rest = [index for index in range(len(incidents)) if index not in chosen]
    lines = [Line(*_line(incidents[index])) for index in rest[:MOST_LINES]]
    return cards, lines, total - len(cards) - len(lines)


def most_severe(incidents: Sequence[Incident], most: int) -> list[Incident]:
    """At most `most` of the most severe incidents, in their order."""
    return [incidents[index] for index in sorted(_most_severe(incidents, most))]


def card(incident: Incident) -> Card:
    losses = ", ".join(number(row.loss) for row in incident.window)
    return Card(
        *_line(incident),
        story=" ".join(words.story(incident)),
        facts=_facts(incident),
        window=charts.window(incident, f"window-{incident.anchor}") if len(incident.window) > 1 else None,
        window_words=f"Loss in the {len(incident.window)} attempts up to the incident: {losses}.",
        samples=", ".join(runs(incident.samples)),
        advice=advice(incident),
    )


def _line(incident: Incident) -> tuple[Incident, str, str, str]:
    return incident, words.title(incident), words.badge(incident), tone(incident)


def tone(incident: Incident) -> str:
    """The colour of the badge: good, warn or danger."""
    if incident.halted or (incident.outcome is not None and incident.outcome.kind == "recurred"):
        return "danger"
    return "good" if incident.outcome is not None and incident.outcome.kind == "recovered" else "warn"


def _most_severe(incidents: Sequence[Incident], most: int) -> list[int]:
    return sorted(range(len(incidents)), key=lambda index: _rank(incidents[index]))[:most]


def _rank(incident: Incident) -> int:
    """The most severe first: what halted the run, what was rolled back, what was not finite."""
    return 0 if incident.halted else severity(incident.action, incident.verdict)


def _facts(incident: Incident) -> list[tuple[str, str]]:
    facts = [
        ("Signal", words.signal_name(incident.signal)),
        ("Value", number(incident.value)),
        ("Usual", number(incident.baseline)),
        ("Score", number(incident.score) if math.isfinite(incident.score or 0) else UNKNOWN),
        ("Attempt", count(incident.attempt)),
        ("Rolled back in", f"{number(1000 * incident.seconds)} ms" if incident.seconds else UNKNOWN),
    ]
    return [(name, value) for name, value in facts if value not in {UNKNOWN, "signal"}]
