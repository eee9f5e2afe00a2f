"""Incidents as the page shows them: a card with all its evidence, or one line where there are many."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from guard.records import Incident, LayerEvidence, RankEvidence
from jobs.report import charts, words
from jobs.report.formats import UNKNOWN, count, number, percent

MOST_CARDS = 24
MOST_LINES = 1500


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A row of the table of layers; `bar` is the share in per cent, for the bar behind it."""

    name: str
    norm: str
    share: str
    growth: str
    bar: float
    bad: bool


@dataclass(frozen=True, slots=True)
class RankRow:
    """A row of the table of ranks."""

    rank: str
    loss: str
    norm: str
    share: str
    bad: bool


@dataclass(frozen=True, slots=True)
class Card:
    """What the template needs to show one incident."""

    id: int
    anchor: str
    tone: str
    title: str
    badge: str
    sentences: list[str]
    facts: list[tuple[str, str]]
    window: Markup | None
    window_words: str
    layers: list[LayerRow]
    ranks: list[RankRow]
    samples: str


@dataclass(frozen=True, slots=True)
class Line:
    """One incident in the table of those that have no card."""

    id: int
    anchor: str
    title: str
    badge: str
    tone: str


def arrange(incidents: Sequence[Incident]) -> tuple[list[Card], list[Line], int]:
    """The gravest incidents as cards, the others as lines, and how many are left to the file."""
    chosen = set(_gravest(incidents, MOST_CARDS))
    cards = [card(incidents[index]) for index in sorted(chosen)]
    rest = [index for index in range(len(incidents)) if index not in chosen]
    lines = [line(incidents[index]) for index in rest[:MOST_LINES]]
    return cards, lines, len(rest) - len(lines)


def gravest(incidents: Sequence[Incident], most: int) -> list[Incident]:
    """At most so many of the gravest, in the order in which they came."""
    return [incidents[index] for index in sorted(_gravest(incidents, most))]


def card(incident: Incident) -> Card:
    drawn = charts.window(incident, f"window-{incident.anchor}") if len(incident.window) > 1 else None
    return Card(
        id=incident.id,
        anchor=incident.anchor,
        tone=tone(incident),
        title=words.title(incident),
        badge=words.badge(incident),
        sentences=words.story(incident),
        facts=_facts(incident),
        window=drawn,
        window_words=_window_words(incident),
        layers=[_layer_row(layer) for layer in incident.layers],
        ranks=[_rank_row(rank) for rank in incident.ranks],
        samples=", ".join(words.sample_names(incident)),
    )


def line(incident: Incident) -> Line:
    return Line(incident.id, incident.anchor, words.title(incident), words.badge(incident), tone(incident))


def tone(incident: Incident) -> str:
    """The colour of the badge: good, warn or danger."""
    if incident.halted or (incident.outcome is not None and incident.outcome.kind == "recurred"):
        return "danger"
    return "good" if incident.outcome is not None and incident.outcome.kind == "recovered" else "warn"


def _gravest(incidents: Sequence[Incident], most: int) -> list[int]:
    return sorted(range(len(incidents)), key=lambda index: (_rank(incidents[index]), index))[:most]


def _rank(incident: Incident) -> int:
    """The gravest first: what halted the run, what was rewound, what was not finite."""
    if incident.halted:
        return 0
    if incident.rolled_back:
        return 1
    return 2 if incident.verdict == "nonfinite" else 3


def _facts(incident: Incident) -> list[tuple[str, str]]:
    facts = [
        ("Signal", words.signal_name(incident.signal)),
        ("Value", number(incident.value)),
        ("Usual", number(incident.baseline)),
        ("Score", number(incident.score) if math.isfinite(incident.score or 0) else UNKNOWN),
        ("Attempt", count(incident.attempt)),
        ("Rewound in", _milliseconds(incident.seconds)),
    ]
    return [(name, value) for name, value in facts if value not in {UNKNOWN, "signal"}]


def _milliseconds(seconds: float | None) -> str:
    return f"{number(1000 * seconds)} ms" if seconds else UNKNOWN


def _window_words(incident: Incident) -> str:
    losses = ", ".join(number(row.loss) for row in incident.window)
    return f"Loss in the {len(incident.window)} attempts up to the incident: {losses}."


def _layer_row(layer: LayerEvidence) -> LayerRow:
    return LayerRow(
        name=words.layer_name(layer.name),
        norm=_or_dash(layer.norm, number),
        share=_or_dash(layer.share, percent),
        growth=_or_dash(layer.growth, _growth),
        bar=_bar(layer.share),
        bad=layer.norm is not None and not math.isfinite(layer.norm),
    )


def _rank_row(rank: RankEvidence) -> RankRow:
    return RankRow(
        rank=str(rank.rank),
        loss=_or_dash(rank.loss, number),
        norm=_or_dash(rank.local_norm, number),
        share=_or_dash(rank.share, percent),
        bad=rank.nonfinite,
    )


def _growth(growth: float) -> str:
    return f"{number(growth)} ×" if math.isfinite(growth) else "–"


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "–" if value is None else text(value)


def _bar(share: float | None) -> float:
    return round(100 * min(max(share, 0.0), 1.0), 1) if share is not None and math.isfinite(share) else 0.0
