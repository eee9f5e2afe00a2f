"""Everything that the report shows, read from the files of one job.

Any of the files may be missing, empty or cut: what is not there is None or empty here.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jobs.report.causes import with_first_layer
from jobs.report.checkpoints import Checkpoint, read_checkpoints
from jobs.report.formats import as_float, as_int, as_text
from jobs.report.incidents import Incident, join_outcomes
from jobs.report.series import Flags, Floats, Matrix, cell, matrix
from jobs.run_dir.jsonl import iter_jsonl, read_json
from jobs.run_dir.storage import without_keys
from jobs.spec.yaml_text import load_yaml

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation; `metrics` as the workload names them."""

    attempt: int
    step: int | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Steps:
    """The step attempts, a column each. NaN: the row does not say, or the value is not finite."""

    attempt: Floats
    step: Floats
    time: Floats
    loss: Floats
    grad_norm: Floats
    clip_threshold: Floats
    lr: Floats
    step_seconds: Floats
    guard_seconds: Floats
    rolled_back_to: Floats
    loss_nonfinite: Flags
    grad_norm_nonfinite: Flags
    clipped: Flags
    skipped: Flags
    anomalous: Flags
    recovering: Flags

    def __len__(self) -> int:
        return len(self.attempt)


@dataclass(frozen=True, slots=True)
class Run:
    """One job, as far as its files tell."""

    name: str
    spec: Mapping[str, Any]
    spec_text: str
    result: Mapping[str, Any] | None
    steps: Steps
    evaluations: tuple[Evaluation, ...]
    layers: Matrix
    ranks: Matrix
    incidents: tuple[Incident, ...]
    rewound: tuple[Span, ...]
    restarts: int
    samples: str = ""
    checkpoints: tuple[Checkpoint, ...] = ()


_NUMBERS = (
    "attempt",
    "step",
    "time",
    "loss",
    "grad_norm",
    "clip_threshold",
    "lr",
    "step_seconds",
    "guard_seconds",
    "rolled_back_to",
)
_FLAGS = ("loss_nonfinite", "grad_norm_nonfinite", "clipped", "skipped", "anomalous", "recovering")
_CALM = {"lr_scale": 1.0, "weight_decay_scale": 1.0, "anchor_l2": 0.0, "l1": 0.0}


def read_run(job_dir: Path, *, remote: bool = True) -> Run:
    """Read spec.yaml, metrics.jsonl, incidents.jsonl and result.json of a job.

    Args:
        job_dir: the folder of the job.
        remote: whether a storage elsewhere, which the spec names, may be asked for its checkpoints.
    """
    spec_text, spec = _read_spec(job_dir / "spec.yaml")
    result = read_json(job_dir / "result.json")
    table = _Table()
    for row in iter_jsonl(job_dir / "metrics.jsonl"):
        table.add(row)
    steps, layers = table.steps(), _layer_matrix(table.layers)
    incidents = join_outcomes(iter_jsonl(job_dir / "incidents.jsonl"))
    return Run(
        name=as_text((result or {}).get("job")) or as_text(spec.get("name")) or job_dir.resolve().name,
        spec=spec,
        spec_text=spec_text,
        result=result,
        steps=steps,
        evaluations=tuple(table.evaluations),
        layers=layers,
        ranks=_rank_matrix(table.local_norms),
        incidents=tuple(with_first_layer(incident, layers) for incident in incidents),
        rewound=tuple(rewound_spans(steps)),
        restarts=table.restarts,
        samples=_read_text(job_dir / "samples.txt") if (result or {}).get("samples") else "",
        checkpoints=read_checkpoints(job_dir, spec, remote=remote),
    )


def rewound_spans(steps: Steps) -> Iterable[Span]:
    """The attempts that each rollback undid, as (first, last): those whose step was beyond its target."""
    standing: list[tuple[float, float]] = []
    for attempt, step, target in zip(steps.attempt, steps.step, steps.rolled_back_to, strict=True):
        first = attempt
        while not math.isnan(target) and standing and not standing[-1][1] <= target:
            first = standing.pop()[0]
        if not math.isnan(target):
            yield float(first), float(attempt)
        standing.append((attempt, step))


@dataclass
class _Table:
    """Collects the rows; where a job was restarted from a checkpoint, the later history stands."""

    numbers: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _NUMBERS})
    flags: dict[str, list[bool]] = field(default_factory=lambda: {name: [] for name in _FLAGS})
    layers: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    local_norms: list[tuple[int, list[Any]]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    restarts: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        attempt = as_int(row.get("attempt"))
        if attempt is None:
            return
        if isinstance(row.get("eval"), Mapping):
            self.evaluations.append(_evaluation(row, attempt))
        else:
            self._add_step(row, attempt)

    def steps(self) -> Steps:
        columns: dict[str, Any] = {
            name: np.array(column, dtype=np.float64) for name, column in self.numbers.items()
        }
        columns |= {name: np.array(column, dtype=np.bool_) for name, column in self.flags.items()}
        return Steps(**columns)

    def _add_step(self, row: Mapping[str, Any], attempt: int) -> None:
        known = self.numbers["attempt"]
        if known and attempt <= known[-1]:
            self._forget_from(attempt)
        for name, column in self.numbers.items():
            column.append(_finite(row.get(name)))
        for name, flag in _row_flags(row).items():
            self.flags[name].append(flag)
        if isinstance(row.get("layers"), Mapping):
            self.layers.append((attempt, row["layers"]))
        if isinstance(row.get("local_norms"), list) and _were_taken(row):
            self.local_norms.append((attempt, row["local_norms"]))

    def _forget_from(self, attempt: int) -> None:
        self.restarts += 1
        place = bisect_left(self.numbers["attempt"], attempt)
        for numbers in self.numbers.values():
            del numbers[place:]
        for flags in self.flags.values():
            del flags[place:]
        self.layers = [item for item in self.layers if item[0] < attempt]
        self.local_norms = [item for item in self.local_norms if item[0] < attempt]
        self.evaluations = [item for item in self.evaluations if item.attempt < attempt]


def _finite(value: Any) -> float:
    known = as_float(value)
    return known if known is not None and -math.inf < known < math.inf else math.nan


def _row_flags(row: Mapping[str, Any]) -> dict[str, bool]:
    action = row.get("action")
    return {
        "loss_nonfinite": _is_nonfinite(row.get("loss")),
        "grad_norm_nonfinite": _is_nonfinite(row.get("grad_norm")),
        "clipped": action == "clipped",
        "skipped": action == "skipped",
        "anomalous": row.get("verdict", "ok") != "ok",
        "recovering": _is_recovering(row.get("regularization")),
    }


def _were_taken(row: Mapping[str, Any]) -> bool:
    """Norms that are taken only now and then are all NaN in between, beside a finite global norm."""
    return _is_nonfinite(row.get("grad_norm")) or not all(_is_nonfinite(norm) for norm in row["local_norms"])


def _is_nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_recovering(regularization: Any) -> bool:
    if not isinstance(regularization, Mapping):
        return False
    return any(regularization.get(name, calm) != calm for name, calm in _CALM.items())


def _evaluation(row: Mapping[str, Any], attempt: int) -> Evaluation:
    metrics = {str(name): as_float(value) for name, value in row["eval"].items()}
    known = {name: value for name, value in metrics.items() if value is not None}
    return Evaluation(attempt, as_int(row.get("step")), known)


def _layer_matrix(rows: list[tuple[int, Mapping[str, Any]]]) -> Matrix:
    names = tuple(dict.fromkeys(name for _, layers in rows for name in layers))
    values = [[cell(layers.get(name)) for name in names] for _, layers in rows]
    return Matrix(_attempts(rows), names, matrix(values, len(names)))


def _rank_matrix(rows: list[tuple[int, list[Any]]]) -> Matrix:
    world_size = max((len(norms) for _, norms in rows), default=0)
    values = [[cell(norm) for norm in norms] for _, norms in rows]
    names = tuple(f"rank {rank}" for rank in range(world_size))
    return Matrix(_attempts(rows), names, matrix(values, world_size))


def _attempts(rows: list[tuple[int, Any]]) -> Floats:
    return np.array([attempt for attempt, _ in rows], dtype=np.float64)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _read_spec(path: Path) -> tuple[str, Mapping[str, Any]]:
    """Its text for people, and what it says."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return "", {}
    try:
        spec = load_yaml(text)[1]
    except (yaml.YAMLError, ValueError, RecursionError):
        spec = None
    return without_keys(text), spec if isinstance(spec, Mapping) else {}
