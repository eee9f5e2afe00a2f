"""The page: figures, charts and words of a run, in one HTML file."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from jobs.report import cards, charts, colors, cost, heat, words
from jobs.report.bad_samples import offenders
from jobs.report.checkpoints import FATES
from jobs.report.data import Run, read_run
from jobs.report.formats import UNKNOWN, as_mapping, count, duration, number, percent, plural, size_text
from jobs.report.hover import training_values
from jobs.report.plot_style import TEXT_ON_PHONE
from jobs.report.profile import gpu_figure, profile_table
from jobs.report.spec_parts import spec_parts
from jobs.report.summary import Summary, guard_words, heading, headline, metric_text, status_words, summarize
from jobs.run_dir.jsonl import write_text_atomic
from jobs.run_dir.reader import RunReader
from jobs.run_dir.steps import Evaluation
from jobs.run_dir.storage import without_keys

MOST_EVALUATIONS = 60
MOST_CHECKPOINTS = 40
MOST_SPEC_CHARACTERS = 20_000
MOST_SAMPLE_CHARACTERS = 10_000
PALETTES = {"light": colors.LIGHT, "dark": colors.DARK, "paper": colors.PAPER}
TONES = {"succeeded": "good", "failed": "danger", "halted": "danger", "stopped": "warn"}


def write_page(job_dir: str | Path, to: Path | None = None) -> Path:
    """Write report.html from the job's files, any of which may be missing or cut. Returns its path.

    Args:
        job_dir: the folder of the job, or a bare journal of incidents: then the report is written beside it.
        to: another file to write.
    """
    path = to or RunReader(Path(job_dir)).folder.report
    write_html(path, render(read_run(Path(job_dir))))
    return path


def write_html(path: Path, html: str) -> None:
    """Write a page; what is no text (a lone surrogate) becomes a question mark."""
    write_text_atomic(path, html.encode("utf-8", "replace").decode("utf-8"))


def render(run: Run) -> str:
    """The page of a run."""
    return template("report.html.j2").render(**context(run))


def template(name: str) -> Template:
    """A template of this folder, with the colours of the report; what it shows is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["finite"] = math.isfinite
    environment.filters |= {
        "unbroken": lambda text: text.replace(" %", "\u00a0%"),
        "layer_name": words.layer_name,
        "number": lambda value: number(value).replace(UNKNOWN, "–"),
        "percent": lambda value: percent(value).replace(UNKNOWN, "–").replace(" %", "\u00a0%"),
    }
    return environment.get_template(name, globals={**PALETTES, "text_on_phone": TEXT_ON_PHONE})


def context(run: Run) -> dict[str, Any]:
    """Everything that the template names."""
    summary = summarize(run)
    shown, lines, unlisted = cards.arrange(run.incidents, len(run.incident_attempts))
    cost_parts = cost.shares(run, summary)
    worst, more_offenders = offenders(run.incidents)
    return {
        "run": run,
        "summary": summary,
        "status": status_words(summary.status),
        "tone": TONES.get(summary.status, "warn"),
        "setup": setup_words(run.spec, run.result),
        "headline": headline(summary),
        "guard_words": guard_words(summary),
        "figures": figures(summary),
        "training": charts.training(run) if len(run.steps) else None,
        "training_words": training_words(run),
        "hover": training_values(run) if len(run.steps) else None,
        "legend": legend(run),
        "guard_mode": guard_mode(run.spec),
        "no_incidents": no_incidents(run),
        "shadow": words.SHADOW,
        "cards": shown,
        "lines": lines,
        "unlisted": unlisted,
        "offenders": worst,
        "more_offenders": more_offenders,
        "more_incidents": len(run.incident_attempts) - len(run.incidents),
        "layers": heat.layers(run.layers, charts.span(run)) if len(run.layers.names) else None,
        "ranks": heat.ranks(run.ranks, charts.span(run)) if len(run.ranks.names) > 1 else None,
        "cost": charts.cost(run) if cost_parts else None,
        "cost_parts": cost_parts,
        "cost_words": cost.typical_milliseconds(run.steps),
        "profile": profile_table(run.profile),
        "checkpoints": charts.checkpoints(run) if run.checkpoints else None,
        "checkpoint_words": checkpoint_words(run),
        "checkpoint_rows": checkpoint_rows(run),
        "evaluations": evaluation_table(run.evaluations),
        "confusion": confusion_table(run.result),
        "samples": printable(run.samples[:MOST_SAMPLE_CHARACTERS]),
        "spec": run.spec_text[:MOST_SPEC_CHARACTERS],
        "spec_changed": changed_spec(run),
    }


def setup_words(spec: Mapping[str, Any], result: Mapping[str, Any] | None = None) -> list[str]:
    """The run in a line: model, the data that was found, optimizer, scale."""
    model, data, optimizer = (as_mapping(spec.get(part)) for part in ("model", "data", "optimizer"))
    train, scale = as_mapping(spec.get("train")), as_mapping(spec.get("scale"))
    rate = f", lr {optimizer['lr']}" if "lr" in optimizer else ""
    parts = [
        _text(model.get("name")),
        _text((result or {}).get("dataset") or data.get("dataset")),
        _text(optimizer.get("name")).upper() + rate if "name" in optimizer else "",
        f"batch {data['batch_size']}" if "batch_size" in data else "",
        _counted(train.get("epochs"), "epoch"),
        _counted(scale.get("workers"), "worker"),
    ]
    return [part for part in parts if part]


def figures(summary: Summary) -> list[tuple[str, str, str]]:
    """The key figures: name, value, and a word on it."""
    of_steps = f"in {count(summary.attempts)} attempts" if summary.attempts is not None else ""
    clipped = summary.clips / summary.attempts if summary.clips is not None and summary.attempts else None
    items = [
        ("Steps", count(summary.steps), of_steps),
        ("Duration", duration(summary.seconds), ""),
        ("Anomalies", count(summary.anomalies), "found by the guard"),
        ("Skips", count(summary.skips), "steps not applied"),
        ("Rollbacks", count(summary.rollbacks), ""),
        ("Steps lost", count(summary.steps_lost), "rolled back"),
        ("Clipped", count(summary.clips), f"{percent(clipped)} of attempts" if clipped is not None else ""),
        ("Guard", percent(summary.guard_share), "of the step time"),
        *gpu_figure(summary.gpu),
    ]
    if "test_accuracy" in summary.metrics:
        loss = summary.metrics.get("test_loss")
        note = f"test loss {number(loss)}" if loss is not None else ""
        accuracy = metric_text("test_accuracy", summary.metrics["test_accuracy"])
        items.insert(0, ("Test accuracy", accuracy, note))
    else:
        named = list(summary.metrics.items())[:2]
        items[:0] = [(heading(name), metric_text(name, value), "") for name, value in named]
    return [item if item[1] != "unknown" else (item[0], "–", "") for item in items]


def changed_spec(run: Run) -> str:
    """What the spec sets to other values than the defaults; empty where that is all of it."""
    if not run.spec:
        return ""
    parts = spec_parts(run.spec)
    return without_keys(parts.changed)[:MOST_SPEC_CHARACTERS] if parts.folded else ""


def printable(text: str) -> str:
    """The text with what is neither a character nor a line break replaced: a model writes anything."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def training_words(run: Run) -> str:
    """The training chart in words, for screen readers."""
    losses = run.steps.loss[np.isfinite(run.steps.loss)]
    if not len(losses):
        return "No finite loss was recorded."
    ways = f"Loss went from {number(float(losses[0]))} to {number(float(losses[-1]))}"
    highest = f"highest {number(float(losses.max()))}"
    more = len(run.incident_attempts) - len(run.incidents)
    marked = (
        f"{plural(len(run.incidents), 'incident')} marked{f', {count(more)} lesser ones not' if more else ''}"
    )
    return f"{ways} ({highest}) over {plural(len(run.steps), 'attempt')}; {marked}."


def legend(run: Run) -> list[tuple[str, str]]:
    """What the colours of the training chart mean: CSS class and words; only what occurs in it."""
    bad = bool(run.steps.loss_nonfinite.any() or run.steps.grad_norm_nonfinite.any())
    entries = [
        (bool(charts.evaluation_points(run, "test_loss")[0]), "diamond", "test loss"),
        (bool(np.isfinite(run.steps.clip_threshold).any()), "dashes", "clip threshold"),
        (bool(run.rolled_back), "rolled-back", "rolled back"),
        (bool(run.steps.recovering.any()), "recovery", "recovery"),
        (bad, "cross", "not finite"),
        (bool(run.incidents), "number", "incident"),
    ]
    return [(mark, text) for occurs, mark, text in entries if occurs]


def guard_mode(spec: Mapping[str, Any]) -> str:
    """A bare `off` is false to YAML 1.1."""
    mode = as_mapping(spec.get("guard")).get("mode", "auto")
    return "off" if mode is False else str(mode)


def no_incidents(run: Run) -> str:
    """What the absence of incidents means."""
    if guard_mode(run.spec) == "off":
        return words.GUARD_OFF
    if not len(run.steps):
        return words.NOTHING_YET
    missing = int(run.steps.anomalous.sum())
    return words.journal_missing(missing) if missing else words.NO_INCIDENTS


def evaluation_table(evaluations: tuple[Evaluation, ...]) -> dict[str, Any] | None:
    """Columns in the order of the workload; of a very long table the latest rows."""
    if not evaluations:
        return None
    names = list(dict.fromkeys(name for entry in evaluations for name in entry.metrics))
    names.sort(key=lambda name: name != "epoch")
    rows = [
        [count(entry.step), *(_cell(name, entry.metrics.get(name)) for name in names)]
        for entry in evaluations[-MOST_EVALUATIONS:]
    ]
    heads = ["Step", *map(heading, names)]
    return {"heads": heads, "rows": rows, "earlier": max(0, len(evaluations) - MOST_EVALUATIONS)}


def confusion_table(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Names of the classes and rows of the confusion matrix, each cell with its share of the row."""
    found = as_mapping((result or {}).get("confusion"))
    names, rows = found.get("classes"), found.get("rows")
    if not isinstance(names, list) or not isinstance(rows, list) or not _is_square(rows, len(names)):
        return None
    shares = [[(n, n / max(1, sum(row))) for n in row] for row in rows]
    return {"names": names, "rows": list(zip(names, shares, strict=True))}


def _is_square(rows: list[Any], size: int) -> bool:
    """Whether it is a matrix of counts; a file may hold anything."""
    shaped = len(rows) == size and all(isinstance(row, list) and len(row) == size for row in rows)
    return shaped and all(isinstance(n, int) and n >= 0 for row in rows for n in row)


def checkpoint_words(run: Run) -> str:
    """How many there were, and how many of them are there now."""
    kept = sum(saved.kept for saved in run.checkpoints)
    shown = f" The latest {MOST_CHECKPOINTS} are listed." if len(run.checkpoints) > MOST_CHECKPOINTS else ""
    were = plural(len(run.checkpoints), "checkpoint was", "checkpoints were")
    return f"{were} taken, {count(kept)} {'is' if kept == 1 else 'are'} there now.{shown}"


def checkpoint_rows(run: Run) -> list[tuple[str, str, str, str]]:
    """Step, fate, size and time of the latest checkpoints, the newest first."""
    return [
        (count(c.step), FATES[c.fate], "–" if c.size is None else size_text(c.size), _clock(c.created))
        for c in run.checkpoints[: -MOST_CHECKPOINTS - 1 : -1]
    ]


def _clock(seconds: float | None) -> str:
    if seconds is None or not 0 < seconds < 1e11:
        return "–"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return count(int(value)) if name == "epoch" and math.isfinite(value) else metric_text(name, value)


def _counted(value: Any, noun: str) -> str:
    return f"{value} {noun if value == 1 else noun + 's'}" if isinstance(value, int) else ""


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else ""
