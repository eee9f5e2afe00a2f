"""``gradguard checkpoint`` has a running job of two workers save its state, on all ranks after one step."""

from __future__ import annotations

import json

import pytest

from jobs import JobClient, JobSpec
from tests.integration.harness.cluster import Cluster
from tests.integration.harness.runner import GRADGUARD, SMALL

pytestmark = pytest.mark.slow


def test_a_running_job_saves_a_checkpoint_on_request(cluster: Cluster) -> None:
    train = {"max_steps": 100_000, "checkpoint_every_steps": 100_000, "eval_every_epochs": 100_000}
    spec = cluster.sandbox.spec("asked", train=train, model=SMALL)
    client = JobClient(cluster.url)
    job = client.submit(JobSpec.load(cluster.sandbox.path / spec))
    log, requested = "", False
    for piece in job.logs(follow=True):
        log += piece
        if not requested and "phase=training step=" in log:
            run = cluster.sandbox.run(GRADGUARD, "checkpoint", job.id, "--address", cluster.url)
            assert run.returncode == 0, run.stdout
            assert f"{job.id} was asked for a checkpoint" in run.stdout
            requested = True
        if "saved on request" in log:
            job.stop()
            break
    assert "saved on request" in log, log
    ended = job.wait(timeout_s=200)
    assert ended.status == "stopped", log
    folder = cluster.sandbox.path / "gradguard" / "runs" / job.id
    rows = [json.loads(line) for line in (folder / "checkpoints.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["event"] == "written")
    assert f"checkpoint of step {first['step']} saved on request" in log
    manifest = folder / "checkpoints" / f"step-{first['step']:08d}" / "manifest.json"
    assert json.loads(manifest.read_text())["world_size"] == 2, "both ranks have written their part"
    late = cluster.sandbox.run(GRADGUARD, "checkpoint", job.id, "--address", cluster.url)
    assert (late.returncode, late.stdout.strip()) == (
        2,
        f"{job.id} is stopped: only a running job saves a checkpoint",
    )
