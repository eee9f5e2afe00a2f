"""Two runs side by side: what came out, what differed in the spec, and what the guard had to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.report import words
from jobs.report.cards import most_severe, tone
from jobs.report.cost import median_milliseconds
from jobs.report.data import Run, read_run
from jobs.report.formats import UNKNOWN, count, duration, number, percent
from jobs.report.overlay import overlay, standing
from jobs.report.page import TONES, template, write_html
from jobs.report.summary import Summary, heading, metric_text, status_words, summarize
from jobs.run_dir.storage import without_keys

MOST_INCIDENTS = 24
MISSING = "–"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both runs; None where it is unknown. `unit` is the key of its format."""

    key: str
    name: str
    first: float | None
    second: float | None
    unit: str

    @property
    def difference(self) -> float | None:
        """Second minus first."""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def texts(self) -> tuple[str, str, str]:
        """First, second and difference in words."""
        difference = self.difference
        sign = "+" if difference is not None and difference > 0 else ("−" if difference else "±")
        change = MISSING if difference is None else f"{sign}{self._text(abs(difference))}"
        return self._text(self.first), self._text(self.second), change

    def _text(self, value: float | None) -> str:
        text = UNKNOWN if value is None else _UNITS.get(self.unit, number)(value)
        return MISSING if text == UNKNOWN else text


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that `compare` shows. `names` are those of the jobs, or their folders where both have one
    name; `spec` and `versions`: dotted name to what each run has."""

    names: tuple[str, str]
    runs: tuple[Run, Run]
    summaries: tuple[Summary, Summary]
    figures: tuple[Figure, ...]
    spec: Mapping[str, tuple[str, str]]
    versions: Mapping[str, tuple[str, str]]

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON types."""
        both = zip(("first", "second"), self.names, self.runs, self.summaries, strict=True)
        described: dict[str, Any] = {
            place: {"name": name, "status": summary.status, "incidents": [*map(words.title, run.incidents)]}
            for place, name, run, summary in both
        }
        kept = ("first", "second", "difference", "unit")
        return described | {
            "figures": {each.key: {name: getattr(each, name) for name in kept} for each in self.figures},
            "spec": {name: list(values) for name, values in self.spec.items()},
            "versions": {name: list(values) for name, values in self.versions.items()},
        }


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Compare the jobs in two folders; any of their files may be missing or cut."""
    runs = read_run(Path(first)), read_run(Path(second))
    summaries = summarize(runs[0]), summarize(runs[1])
    names = runs[0].name, runs[1].name
    return Comparison(
        names=names if names[0] != names[1] else (str(first), str(second)),
        runs=runs,
        summaries=summaries,
        figures=tuple(_figures(runs, summaries)),
        spec=_differing(flat(runs[0].spec), flat(runs[1].spec)),
        versions=_differing(summaries[0].versions, summaries[1].versions),
    )


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the comparison as one HTML file that is self-contained. Returns its path."""
    write_html(path, template("compare.html.j2").render(**context(comparison)))
    return path


def context(comparison: Comparison) -> dict[str, Any]:
    """Everything that the template names."""
    runs = comparison.runs
    statuses = [summary.status for summary in comparison.summaries]
    return {
        "names": comparison.names,
        "badges": [(status_words(status), TONES.get(status, "warn")) for status in statuses],
        "figures": [(figure.name, *figure.texts) for figure in comparison.figures],
        "chart": overlay(runs) if any(len(run.steps) for run in runs) else None,
        "chart_words": f"Loss, gradient norm and learning rate of {' and '.join(comparison.names)} by step.",
        "incidents": [_incidents(run) for run in runs],
        "spec": comparison.spec,
        "versions": comparison.versions,
    }


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names, as `--set` writes them."""
    found: dict[str, str] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            found |= flat(entry, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = "null" if entry is None else without_keys(str(entry))
    return found


def _differing(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    names = dict.fromkeys([*first, *second])
    both = {name: (first.get(name, MISSING), second.get(name, MISSING)) for name in names}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _figures(runs: tuple[Run, Run], summaries: tuple[Summary, Summary]) -> list[Figure]:
    first, second = summaries
    metrics = []
    for name in first.metrics | second.metrics:
        values = first.metrics.get(name), second.metrics.get(name)
        unit = "accuracy" if name.endswith("accuracy") else ""
        metrics.append(Figure(f"metrics.{name}", heading(name), *values, unit))
    reported = [
        Figure(key, name, getattr(first, key), getattr(second, key), unit)
        for key, (name, unit) in _REPORTED.items()
    ]
    measured = [
        Figure(key, name, of(runs[0]), of(runs[1]), unit) for key, (name, of, unit) in _MEASURED.items()
    ]
    return [*metrics, *reported, *measured]


def _final_loss(run: Run) -> float | None:
    """The median over the last twentieth of the final history: one batch is noise."""
    losses = run.steps.loss[standing(run)]
    last = losses[-max(1, len(losses) // 20) :]
    return float(np.nanmedian(last)) if np.isfinite(last).any() else None


_REPORTED = {
    "steps": ("Steps", "count"),
    "attempts": ("Attempts", "count"),
    "seconds": ("Duration", "seconds"),
    "anomalies": ("Anomalies", "count"),
    "skips": ("Skips", "count"),
    "rollbacks": ("Rollbacks", "count"),
    "steps_lost": ("Steps lost", "count"),
    "clips": ("Clipped", "count"),
    "guard_share": ("Guard, of the step time", "share"),
    "world_size": ("World size", "count"),
}
_MEASURED: dict[str, tuple[str, Callable[[Run], float | None], str]] = {
    "final_loss": ("Training loss at the end", _final_loss, ""),
    "step_milliseconds": (
        "Median step",
        lambda run: median_milliseconds(run.steps.step_seconds),
        "milliseconds",
    ),
}
_UNITS: dict[str, Callable[[float], str]] = {
    "count": lambda value: count(int(value)),
    "seconds": duration,
    "milliseconds": lambda value: f"{number(value)} ms",
    "share": percent,
    "accuracy": lambda value: metric_text("accuracy", value),
}


def _incidents(run: Run) -> dict[str, Any]:
    shown = most_severe(run.incidents, MOST_INCIDENTS)
    return {
        "shown": [(i.id, words.title(i), words.badge(i), tone(i)) for i in shown],
        "unlisted": len(run.incident_attempts) - len(shown),
    }
