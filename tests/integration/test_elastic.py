"""An elastic job grows onto a node that joins the cluster, and moves off it after hardware faults or when it
is preempted."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.integration.harness.chaos import CONTINUES
from tests.integration.harness.cluster import Cluster, joined_node
from tests.integration.harness.runner import GRADGUARD, Sandbox, read_until

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(900)]

SPEC: dict[str, Any] = {
    "scale": {
        "workers": 2,
        "min_workers": 1,
        "cpus_per_worker": 2,
        "resize_every_s": 2.0,
        "max_hardware_faults": 1,
        "stop_grace_s": 60.0,
    },
    "train": {"max_steps": 5000, "checkpoint_every_steps": 5, "eval_every_epochs": 100},
    "faults": [
        {"kind": "bitflip_gradient", "step": 14, "rank": 1, "times": 5000, "parameter": "fc.weight"},
    ],
}
"""The second worker, once there is one, computes rubbish."""


def test_a_job_grows_onto_a_node_and_moves_off_it_after_hardware_faults(cluster: Cluster) -> None:
    sandbox = cluster.sandbox
    job = sandbox.start(GRADGUARD, "train", sandbox.spec("elastic", **SPEC), "--address", cluster.address)
    output = read_until(job, lambda line: "world size of 1" in line)
    assert "starting 1 to 2 workers" in output
    with joined_node(cluster):
        output = read_until(job, lambda line: "world size of 2" in line)
        output += read_until(job, lambda line: "world size of 1" in line)
        assert "hardware fault on rank 1 (node " in output
        assert "had too many hardware faults: training continues without it" in output
        job.send_signal(signal.SIGINT)
        rest, _ = job.communicate(timeout=240)
    assert "stopped" in rest
    check_history(sandbox, "elastic", world_size=1)


def test_a_job_continues_without_a_preempted_node_and_grows_again(cluster: Cluster) -> None:
    sandbox = cluster.sandbox
    healthy = {**SPEC, "faults": [], "train": {**SPEC["train"], "checkpoint_every_steps": 1000}}
    job = sandbox.start(
        GRADGUARD, "train", sandbox.spec("preempted", **healthy), "--address", cluster.address
    )
    read_until(job, lambda line: "world size of 1" in line)
    with joined_node(cluster) as node:
        read_until(job, lambda line: "world size of 2" in line)
        read_until(job, lambda line: "phase=training" in line and "loss=" in line)
        node.send_signal(signal.SIGTERM)
        output = read_until(job, lambda line: "world size of 1" in line)
        node.communicate(timeout=120)
    assert "is about to be preempted: saving the state" in output
    assert "is being preempted: training continues without it" in output, output
    assert "died" not in output, "it left before the node did"
    assert int(CONTINUES.findall(output)[-1]) > 0, "from the state that was saved for the move"
    with joined_node(cluster):
        read_until(job, lambda line: "world size of 2" in line)
        job.send_signal(signal.SIGINT)
        rest, _ = job.communicate(timeout=240)
    assert "stopped" in rest
    check_history(sandbox, "preempted", world_size=2)


def check_history(sandbox: Sandbox, job: str, *, world_size: int) -> None:
    """One history, however many workers made it; at the end there were ``world_size``."""
    result = sandbox.result(job)
    assert (result["status"], result["world_size"]) == ("stopped", world_size)
    steps = [row["step"] for row in sandbox.rows(job, "metrics.jsonl") if "action" in row]
    assert steps == list(range(1, result["steps"] + 1))
