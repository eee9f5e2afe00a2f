"""The incidents of a journal, each with its outcome; of a long one some, with bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from guard.records import Incident, IncidentOutcome
from guard.rows import as_int, as_text, as_text_or_none
from jobs.run_dir.jsonl import GrowingRows

Row = Mapping[str, Any]


class Journal(NamedTuple):
    """Incidents of a journal, in its order, and the attempts of all that it has."""

    incidents: list[Incident]
    attempts: list[int | None]


class _Kept(NamedTuple):
    """A row as it is stored: to read its evidence takes longer than all the rest."""

    row: Row
    number: int
    anchor: str
    outcome: Row | None = None

    def incident(self) -> Incident:
        outcome = None if self.outcome is None else IncidentOutcome.from_row(self.outcome)
        found = replace(Incident.from_row(self.row), id=self.number, anchor=self.anchor)
        return found if outcome is None else replace(found, outcome=outcome)


def join_outcomes(
    rows: Iterable[Row], start: int = 0, limit: int | None = None, *, severest: bool = False
) -> Journal:
    """Incidents in the order of the journal; arguments as of ``JournalWindow``."""
    window = JournalWindow(start, limit, severest=severest)
    window.add(rows)
    return window.journal()


class JournalWindow:
    """Some incidents of a journal that is read row by row, as it grows.

    An outcome belongs to the latest incident of its job and id. A restarted job may have used an id twice:
    the anchor is unique. Older outcomes name no job.

    Args:
        start: leaves out that many; -1: begins with the newest ``limit``.
        limit: at most so many; no more are held in memory.
        severest: keeps those that halted the run, then those that were rolled back, then those that were not
            finite, and of equally severe ones the newest; with ``start`` -1.
    """

    def __init__(self, start: int = 0, limit: int | None = None, *, severest: bool = False) -> None:
        self._start, self._limit, self._severest = start, limit, severest
        self._kept: dict[int, dict[int, _Kept]] = {}
        self._attempts: list[int | None] = []
        self._latest: dict[tuple[str | None, int], tuple[int, int]] = {}
        self._used: Counter[int] = Counter()

    def add(self, rows: Iterable[Row]) -> None:
        """Takes the next rows."""
        for row in rows:
            if row.get("type") == "outcome":
                self._add_outcome(row)
            elif row.get("type") == "incident":
                self._add_incident(row)

    def journal(self) -> Journal:
        """The incidents that are kept, and the attempts of all."""
        groups = (self._kept[rank] for rank in sorted(self._kept))
        chosen = [pair for group in groups for pair in reversed(group.items())][: self._limit]
        in_order = sorted(chosen, key=lambda pair: pair[0])
        return Journal([kept.incident() for _, kept in in_order], self._attempts)

    def _add_outcome(self, row: Row) -> None:
        key = (as_text_or_none(row.get("job")), as_int(row.get("incident")) or 0)
        rank, place = self._latest.get(key, (0, -1))
        group = self._kept.get(rank, {})
        if place in group:
            group[place] = group[place]._replace(outcome=row)

    def _add_incident(self, row: Row) -> None:
        place, rank = len(self._attempts), _severity(row) if self._severest else 0
        self._attempts.append(as_int(row.get("attempt")))
        number = as_int(row.get("id")) or place + 1
        self._used[number] += 1
        again = f"-{self._used[number]}" if self._used[number] > 1 else ""
        for job in (as_text(row.get("job")), None):
            self._latest[job, number] = rank, place
        end = math.inf if self._limit is None or self._start < 0 else self._start + self._limit
        if not self._start <= place < end:
            return
        group = self._kept.setdefault(rank, {})
        group[place] = _Kept(row, number, f"incident-{number}{again}")
        if self._limit is not None and len(group) > self._limit:
            del group[next(iter(group))]


def _severity(row: Row) -> int:
    return severity(as_text_or_none(row.get("action")), as_text_or_none(row.get("verdict")))


def severity(action: str | None, verdict: str | None) -> int:
    """0 for what halted the run, 1 for what was rolled back, 2 for what was not finite, else 3."""
    if action in ("halt", "halted"):
        return 0
    return 1 if action == "rolled_back" else 2 if verdict == "nonfinite" else 3


class NewIncidents:
    """The incidents of a journal that grows: each call gives those that are new."""

    def __init__(self, path: Path, below: Path | None = None) -> None:
        self._rows = GrowingRows(path, below)
        self._seen: set[tuple[str, int, float | None]] = set()
        self.rollbacks = 0
        """Among those that were taken."""

    def fresh(self) -> Iterator[dict[str, Any]]:
        """The rows of those that are new; none twice, also where a resumed job cut its journal back.

        One whose taker fails comes again.
        """
        if self._rows.restarted():
            self._rows.place = 0
        before = self._rows.place
        while rows := self._rows.rows():
            self._rows.place, after = before, self._rows.place
            for incident in (Incident.from_row(row) for row in rows if row.get("type") == "incident"):
                key = (incident.job, incident.id, incident.time)
                if key not in self._seen:
                    yield {"type": "incident", **incident.to_row()}
                    self._seen.add(key)
                    self.rollbacks += incident.rolled_back
            before = self._rows.place = after
