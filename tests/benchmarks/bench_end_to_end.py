"""A whole job against a raw Ray Train loop with clipping: steps, start, submission, resume.

    python tests/benchmarks/bench_end_to_end.py [--rounds 3] [--steps 60] [--json FILE]

Both train the same ResNet-18 on the same batches with two workers on an embedded Ray, in turns. Ours also
watches, keeps metrics and snapshots, and writes a checkpoint at its end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import psutil
from measure import progress, publish

from tests.integration.harness.cluster import running_cluster
from tests.integration.harness.runner import GRADGUARD, Sandbox

RAW_LOOP = str(Path(__file__).with_name("raw_loop.py"))
SEED = 0
WARMUP_STEPS = 5
DATA = {"dataset": "auto", "batch_size": 128, "train_limit": 20_000, "test_limit": 500}


def raw(sandbox: Sandbox, spec: str) -> dict[str, float]:
    """Seconds to the first step, of a step, and of the whole, without GradGuard."""
    out = sandbox.path / "raw.json"
    began = time.time()
    _check(sandbox.run(sys.executable, RAW_LOOP, spec, str(out)))
    return _figures(began, json.loads(out.read_text()))


def ours(sandbox: Sandbox, spec: str) -> dict[str, float]:
    """The same of ``gradguard train``."""
    name = Path(spec).stem
    began = time.time()
    _check(sandbox.run(GRADGUARD, "train", spec, "--overwrite"))
    return _figures(began, _times(sandbox, name))


def submitted(folder: Path, steps: int) -> float:
    """Seconds from ``gradguard submit``, to a cluster that is up, to the first step."""
    folder.mkdir()
    with running_cluster(folder) as cluster:
        sandbox = cluster.sandbox
        spec = _spec(sandbox, "submitted", steps)
        began = time.time()
        _check(sandbox.run(GRADGUARD, "submit", spec, "--address", cluster.url, "--wait"))
        (job,) = (sandbox.path / "runs").iterdir()  # each submission has a new name
        return _times(sandbox, job.name)[0] - began


def resumed(sandbox: Sandbox, steps: int) -> float:
    """Seconds from the start after Ctrl-C to the first new step."""
    spec = _spec(sandbox, "resumed", steps)
    first = sandbox.start(GRADGUARD, "train", spec)
    _wait_for_step(sandbox, first, steps // 2)
    first.send_signal(signal.SIGINT)
    first.communicate()
    done = len(_times(sandbox, "resumed"))
    began = time.time()
    _check(sandbox.run(GRADGUARD, "train", spec, "--resume"))
    return _times(sandbox, "resumed")[done] - began


def _spec(sandbox: Sandbox, name: str, steps: int) -> str:
    return sandbox.spec(
        name,
        seed=SEED,
        storage=str(sandbox.path / "runs"),
        data=DATA,
        train={"max_steps": steps, "checkpoint_every_steps": steps},
        guard={"snapshot": {"every_steps": 25}},
    )


def _times(sandbox: Sandbox, job: str) -> list[float]:
    return [row["time"] for row in sandbox.rows(job, "metrics.jsonl") if "action" in row]


def _figures(began: float, ends: list[float]) -> dict[str, float]:
    steps = [b - a for a, b in itertools.pairwise(ends)][WARMUP_STEPS:]
    return {"first step": ends[0] - began, "step": statistics.median(steps), "whole": time.time() - began}


def _wait_for_step(sandbox: Sandbox, process: subprocess.Popen[str], step: int) -> None:
    while len(_times(sandbox, "resumed")) < step:
        if process.poll() is not None:
            raise SystemExit(f"the job ended too soon:\n{process.communicate()[0]}")
        psutil.cpu_percent(interval=0.1)


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise SystemExit(f"{' '.join(done.args)} ended with {done.returncode}:\n{done.stdout}")


def _compared(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians, and the median of the ratios of runs that were made one after the other."""
    rows = []
    for what in ("step", "first step", "whole"):
        pairs = [
            (a[what], b[what])
            for a, b in zip(found["raw Ray Train, clipping"], found["GradGuard"], strict=True)
        ]
        rows.append(
            {
                "seconds": what,
                "raw Ray Train, clipping": statistics.median(a for a, _ in pairs),
                "GradGuard": statistics.median(b for _, b in pairs),
                "ratio": statistics.median(b / a for a, b in pairs),
            }
        )
    return rows


def main() -> None:
    """Prints two tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gg-end-") as folder:
        sandbox = Sandbox(Path(folder))
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        sandbox.environment["PYTHONPATH"] = os.pathsep.join(paths)
        spec = _spec(sandbox, "job", options.steps)
        found: dict[str, list[dict[str, float]]] = {"raw Ray Train, clipping": [], "GradGuard": []}
        for number in range(options.rounds):
            progress(f"round {number + 1} of {options.rounds}")
            found["raw Ray Train, clipping"].append(raw(sandbox, spec))
            found["GradGuard"].append(ours(sandbox, spec))
        progress("resume and submission")
        others = [
            {"what": "resume to first new step", "seconds": resumed(sandbox, options.steps)},
            {"what": "submit to first step", "seconds": submitted(Path(folder, "c"), options.steps // 4)},
        ]
    tables = {"a job against a raw loop": _compared(found), "on the way": others}
    publish("end to end", tables, options.json, seeds=[SEED])


if __name__ == "__main__":
    main()
