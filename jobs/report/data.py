"""Everything that the report shows, read from the files of one job.

Any of the files may be missing, empty or cut: what is not there is None or empty here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from guard.records import NUMBERS, Incident
from guard.rows import as_text
from jobs.report.causes import with_first_layer
from jobs.report.checkpoints import Checkpoint, read_checkpoints
from jobs.report.series import Flags, Floats, Matrix, cell, matrix
from jobs.run_dir.incidents import Journal
from jobs.run_dir.jsonl import read_json
from jobs.run_dir.paths import OPERATORS, SAMPLES, SPEC
from jobs.run_dir.reader import RunReader
from jobs.run_dir.steps import Evaluation, RolledBack, Span, StepTable
from jobs.run_dir.storage import without_keys
from jobs.spec.masking import masked, masked_result, masked_spec
from jobs.spec.yaml_text import dump_yaml, load_yaml

MOST_INCIDENTS = 2000
"""Of which a report holds the evidence."""
NO_COOLDOWN = {"lr_scale": 1.0, "weight_decay_scale": 1.0, "anchor_l2": 0.0, "l1": 0.0}
_NESTED = (
    "local_norms",
    "layers",
    "regularization",
    "excluded_ranks",
    "excluded_samples",
    "faulty_ranks",
)
_TEXTS = ("action", "verdict")
_ANOMALY = ("verdict", "excluded_ranks", "excluded_samples", "faulty_ranks", "dropped_micro_batches")


class Steps:
    """The step attempts, a column each: the numbers of ``guard.records.COLUMNS``, by name.

    NaN: the row does not have it, or the value is not finite.
    """

    def __init__(self, table: StepTable) -> None:
        raw = {name: np.array(table.columns[name], dtype=np.float64) for name in NUMBERS}
        self._numbers = {name: np.where(np.isfinite(column), column, np.nan) for name, column in raw.items()}
        self.loss_nonfinite = _nonfinite(table.columns["loss"], raw["loss"])
        self.grad_norm_nonfinite = _nonfinite(table.columns["grad_norm"], raw["grad_norm"])
        actions = np.array(table.columns["action"], dtype=object)
        self.clipped: Flags = np.asarray(actions == "clipped", dtype=np.bool_)
        self.skipped: Flags = np.asarray(actions == "skipped", dtype=np.bool_)
        anomalies = map(_is_anomalous, *(table.columns[name] for name in _ANOMALY))
        self.anomalous: Flags = np.fromiter(anomalies, np.bool_)
        self.recovering: Flags = np.fromiter(map(_is_recovering, table.columns["regularization"]), np.bool_)

    def __getattr__(self, name: str) -> Floats:
        try:
            return self.__dict__["_numbers"][name]
        except KeyError:
            raise AttributeError(f"metrics.jsonl has no numbers called {name!r}") from None

    def __len__(self) -> int:
        return len(self.attempt)


@dataclass(frozen=True, slots=True)
class Run:
    """One job, as far as its files have it."""

    name: str
    spec: Mapping[str, Any]
    spec_text: str
    result: Mapping[str, Any] | None
    steps: Steps
    evaluations: tuple[Evaluation, ...]
    layers: Matrix
    ranks: Matrix
    incidents: tuple[Incident, ...]
    """The most severe and the newest ones of a long journal."""
    rolled_back: tuple[Span, ...]
    restarts: int
    samples: str = ""
    checkpoints: tuple[Checkpoint, ...] = ()
    profile: Mapping[str, Any] | None = None
    incident_attempts: tuple[int | None, ...] = ()
    """Of all incidents."""


def read_run(
    job_dir: Path, *, remote: bool = True, below: Path | None = None, env: Mapping[str, str] | None = None
) -> Run:
    """Read spec.yaml, metrics.jsonl, incidents.jsonl and result.json of a job.

    Args:
        job_dir: the folder of the job, or a bare journal of incidents.
        remote: whether a storage elsewhere, which the spec names, may be asked for its checkpoints.
        below: see ``open_plain``.
        env: the environment that the job got; its secrets are masked too.
    """
    files = RunReader(job_dir, below)
    spec_text, spec, unmasked = _read_spec(files.text(SPEC))
    found = files.result()
    result = None if found is None else masked_result(found, unmasked, env)
    table = files.steps((*NUMBERS, *_TEXTS, *_NESTED))
    steps, layers = Steps(table), _layer_matrix(_known(table, "layers", Mapping))
    journal = files.journal(start=-1, limit=MOST_INCIDENTS, severest=True)
    rolled_back = RolledBack()
    rolled_back.add(table.columns)
    return Run(
        name=as_text((result or {}).get("job")) or as_text(spec.get("name")) or _name(files, journal),
        spec=spec,
        spec_text=spec_text,
        result=result,
        steps=steps,
        evaluations=tuple(table.evaluations),
        layers=layers,
        ranks=_rank_matrix(_measured(table, steps)),
        incidents=tuple(with_first_layer(incident, layers) for incident in journal.incidents),
        incident_attempts=tuple(journal.attempts),
        rolled_back=tuple(rolled_back.spans),
        restarts=table.restarts,
        samples=files.text(SAMPLES) if (result or {}).get("samples") else "",
        checkpoints=read_checkpoints(files, remote=remote),
        profile=read_json(files.folder.path / OPERATORS, files.below),
    )


def _name(files: RunReader, journal: Journal) -> str:
    """What a job is called that has neither a result nor a spec: as its incidents name it, or its folder."""
    jobs = {incident.job for incident in journal.incidents} if not files.exists() else set()
    return ", ".join(sorted(jobs - {""})) or files.folder.path.resolve().name


def _known(table: StepTable, name: str, kind: type) -> list[tuple[int, Any]]:
    pairs = zip(table.columns["attempt"], table.columns[name], strict=True)
    return [(attempt, value) for attempt, value in pairs if isinstance(value, kind)]


def _measured(table: StepTable, steps: Steps) -> list[tuple[int, list[Any]]]:
    """Norms that are measured only on some attempts are all NaN in between, beside a finite global norm."""
    bad = dict(zip(table.columns["attempt"], steps.grad_norm_nonfinite, strict=True))
    return [
        (attempt, norms)
        for attempt, norms in _known(table, "local_norms", list)
        if bad[attempt] or any(cell(norm) != math.inf for norm in norms)
    ]


def _nonfinite(values: Sequence[float | None], column: Floats) -> Flags:
    """NaN or infinite in the file, rather than missing."""
    known = np.fromiter((value is not None for value in values), dtype=np.bool_, count=len(values))
    return np.asarray(known & ~np.isfinite(column), dtype=np.bool_)


def _is_anomalous(verdict: Any, *corrected: Any) -> bool:
    return verdict not in ("ok", None) or any(corrected)


def _is_recovering(recovery: Any) -> bool:
    if not isinstance(recovery, Mapping):
        return False
    return any(recovery.get(name, idle) != idle for name, idle in NO_COOLDOWN.items())


def _layer_matrix(rows: list[tuple[int, Mapping[str, Any]]]) -> Matrix:
    names = tuple(dict.fromkeys(name for _, layers in rows for name in layers))
    return _matrix(names, [(attempt, [layers.get(name) for name in names]) for attempt, layers in rows])


def _rank_matrix(rows: list[tuple[int, list[Any]]]) -> Matrix:
    world_size = max((len(norms) for _, norms in rows), default=0)
    return _matrix(tuple(f"rank {rank}" for rank in range(world_size)), rows)


def _matrix(names: tuple[str, ...], rows: list[tuple[int, list[Any]]]) -> Matrix:
    attempts = np.array([attempt for attempt, _ in rows], dtype=np.float64)
    return Matrix(attempts, names, matrix([[cell(norm) for norm in norms] for _, norms in rows], len(names)))


def _read_spec(text: str) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """Its text and its contents, the secrets masked, and its contents as they are. Text that is no spec is
    masked line by line."""
    try:
        spec = load_yaml(text)[1]
        if isinstance(spec, Mapping):
            shown = masked_spec(spec)
            return without_keys(text if shown == spec else dump_yaml(shown)), shown, spec
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
    return without_keys("\n".join(masked(line) for line in text.splitlines())), {}, {}
