"""Writes guard/METRICS.md, the table of all metrics, from the code: ``python -m tests.tools.metrics_table``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import guard
from guard.record.exposition import FAMILIES, Family
from guard.record.metrics import (
    ACTIONS,
    CHECKPOINT_OUTCOMES,
    MAX_LAYERS,
    MAX_RANKS,
    NONFINITE_SIGNALS,
    SIGNALS,
    SOURCES,
    VERDICTS,
)
from jobs.observability.hub import ENDED_KEPT_S, SILENT_KEPT_S
from jobs.observability.hub_server import HUB_FAMILIES

PATH = Path(guard.__file__).with_name("METRICS.md")

LABELS = {
    "job": f"the training jobs that run, or ended less than {ENDED_KEPT_S / 60:.0f} minutes ago; what died "
    f"without a word goes after {SILENT_KEPT_S / 3600:.0f} hours",
    "rank": f"at most {MAX_RANKS} ranks, those whose norm is furthest from the median (`metrics.max_ranks`); "
    "for hardware faults those that had one, or `unknown`",
    "layer": f"at most {MAX_LAYERS} parameters, or groups of them by module (`metrics.max_layers`)",
    "kind": "the regularizations of the recovery and of the spec",
    "action": ", ".join(f"`{name}`" for name in ACTIONS),
    "signal": ", ".join(f"`{name}`" for name in SIGNALS)
    + "; in `gradguard_nonfinite_total` also "
    + ", ".join(f"`{name}`" for name in NONFINITE_SIGNALS if name not in SIGNALS),
    "verdict": ", ".join(f"`{name}`" for name in VERDICTS),
    "source": ", ".join(f"`{name}`" for name in SOURCES),
    "outcome": ", ".join(f"`{name}`" for name in CHECKPOINT_OUTCOMES),
    "state": "`running`, `succeeded`, `failed`, `halted`, `stopped`, `rejected` (its spec or data)",
}

HEAD = """# Metrics

Written by `python -m tests.tools.metrics_table`, from the code; a test fails where it is not up to date.

A gauge keeps its last finite value and is never NaN, since `NaN > x` is never true in an alert: what is not
finite is counted in `gradguard_nonfinite_total`. A counter starts at zero before the first step and never
goes back while the job's folder stands, whatever is restarted. A histogram has `_bucket`, `_sum`, `_count`.

Against the wall clock a rewound stretch looks like progress. `gradguard_attempts_total`,
`gradguard_samples_total` and `gradguard_tokens_total` count all that was done; `gradguard_steps_accepted`,
`gradguard_samples_accepted` and `gradguard_tokens_accepted` what of it stands: they go back with a rollback.
"""


def table() -> str:
    """The document."""
    return "\n".join(
        [
            HEAD,
            *_rows("Of a job, from the guard", FAMILIES),
            *_rows("Of the hub", HUB_FAMILIES),
            "## Labels\n",
            "No label grows with the number of steps.\n",
            "| Label | Values |",
            "|---|---|",
            *(f"| `{name}` | {values} |" for name, values in LABELS.items()),
            "",
        ]
    )


def _rows(title: str, families: Sequence[Family]) -> list[str]:
    return [
        f"## {title}\n",
        "| Metric | Type | Labels | Meaning |",
        "|---|---|---|---|",
        *(f"| `{f.exported}` | {f.kind} | {_labels(f)} | {f.help} |" for f in families),
        "",
    ]


def _labels(family: Family) -> str:
    names = [] if family.name == "hub_pushes" else ["job"]
    names += family.labels or (["of the run"] if family.kind == "info" else [])
    return ", ".join(names)


if __name__ == "__main__":
    PATH.write_text(table())
