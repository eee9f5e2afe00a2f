"""Jobs that the browser tests look at: one that ended, one that waits, a hostile one, one that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.api import Limits
from service.reconcile.log_spool import log_path
from service.store import JobRow
from tests.jobs.report.report_fixture import SPEC, incidents, rows, write_job, write_rows
from tests.service.api.api_fixture import Api
from tests.service.page.page_fixture import play

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
HISTORY = list(rows(240))
LAST = max(row["attempt"] for row in HISTORY)
BEFORE = 190
"""Rows of the job that runs, when the browser first sees it: both incidents are among them."""


def played_jobs(root: Path) -> Api:
    """A service whose root has the jobs."""
    api = Api(root, limits=Limits())
    plain = {"name": "fashion", "data": {"dataset": "fashion-mnist"}, "train": {"max_steps": 240}}
    write_job(api.root / "runs" / "done")
    play(api, "done", "succeeded", spec=plain, started=1.0, ended=200.0, created=1.0)
    play(api, "asks-for-gpus", "waiting", reason="waiting for 2 GPUs, 1 free", spec=plain)
    (api.root / "runs" / "evil").mkdir()
    write_rows(api.root / "runs" / "evil" / "incidents.jsonl", [evil_incident()])
    play(api, "evil", "failed", reason=f"it said {EVIL}", spec=plain, submitted_by=EVIL)
    log_path(api.root, "evil").parent.mkdir(parents=True)
    log_path(api.root, "evil").write_text(f"{EVIL}\n")
    folder = api.root / "runs" / "fashion-0001"
    folder.mkdir()
    (folder / "spec.yaml").write_text(SPEC)
    write_rows(folder / "metrics.jsonl", HISTORY[:BEFORE])
    write_rows(folder / "incidents.jsonl", [*map(with_moved, incidents("fashion"))])
    play(api, folder.name, "running", spec=plain, started=1.0)
    log_path(api.root, folder.name).write_text("".join(f"step {i}/240\n" for i in range(BEFORE)))
    return api


def with_moved(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "moved": [{"name": "fc.weight", "distance": 3.5, "share": 0.9}]}


def evil_incident() -> dict[str, Any]:
    first = next(incidents("evil"))
    return {**first, "signal": EVIL, "layers": [{"name": EVIL, "norm": 1.0, "share": 0.5, "growth": 2.0}]}


def change(api: Api, job_id: str, **fields: Any) -> None:
    def edit(job: JobRow) -> str:
        for name, value in fields.items():
            setattr(job, name, value)
        return "changed"

    api.context.store.change(job_id, edit)
