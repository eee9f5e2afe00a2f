"""The detector on a log that was dropped on the page, in a process with bounded memory and time."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request

import service as package
from service.api.auth import Submitter
from service.api.job_routes import COMMON
from service.api.problems import Problem, documented

AT_ONCE = 2
"""Logs that a service reads at a time."""
LONGEST_S = 60.0
REFUSED = 2
LOG = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_ODD = re.compile(r"[^A-Za-z0-9._-]+")
router = APIRouter(prefix="/v1", responses=documented(*COMMON))
Named = Annotated[str | None, Query(min_length=1, max_length=200)]


@router.post("/replay", openapi_extra=LOG, responses=documented(503))
async def replay(
    http: Request,
    _: Submitter,
    name: Annotated[str, Query(max_length=200)] = "log",
    step: Named = None,
    loss: Named = None,
    grad_norm: Named = None,
) -> dict[str, Any]:
    """Runs the detector on a training log, as ``gradguard replay`` does; nothing of it is kept. The columns
    are recognized, or named."""
    limiter = http.app.state.replays
    if limiter.available_tokens < 1:
        raise Problem(503, "other logs are being read: try again", headers={"Retry-After": "5"})
    content = await http.body()
    columns = {"step": step, "loss": loss, "grad_norm": grad_norm}
    return await to_thread.run_sync(read_log, content, name, columns, limiter=limiter)


def read_log(content: bytes, name: str, columns: dict[str, str | None]) -> dict[str, Any]:
    """The detector's verdicts on a log.

    Raises:
        Problem: it cannot be read, or needs too much time or memory.
    """
    with tempfile.TemporaryDirectory(prefix="gradguard-replay-") as folder:
        path = Path(folder) / (_ODD.sub("_", name)[-80:].lstrip(".") or "log")
        path.write_bytes(content)
        ended = _read_apart(path, columns)
        if ended.returncode == 0:
            document: dict[str, Any] = json.loads(ended.stdout)
            return document
        said = ended.stderr.replace(f"{folder}/", "").strip() if ended.returncode == REFUSED else ""
    raise Problem(
        422, said or "the log needs more memory or time than this service gives: use gradguard replay"
    )


def _read_apart(path: Path, columns: dict[str, str | None]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "service.page.replay_process", str(path), json.dumps(columns)]
    root = str(Path(package.__file__).parents[1])
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1"}
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST_S,
            cwd=path.parent,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Problem(422, f"the log takes more than {LONGEST_S:.0f} s: use gradguard replay") from None
