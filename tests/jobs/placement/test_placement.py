"""A node with repeated hardware faults is avoided, if there is room elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.placement.hardware_faults import HardwareFaults
from jobs.placement.plan import Placement, plan
from jobs.spec.sections import ScaleSpec

A, B, C = ("a" * 8, "b" * 8, "c" * 8)


def node(name: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def test_without_a_bad_node_the_placement_follows_the_spec() -> None:
    assert plan(ScaleSpec(workers=4), [], (), use_gpu=False) == Placement(4)
    assert plan(ScaleSpec(workers=4, min_workers=2), [], (), use_gpu=False) == Placement((2, 4))
    assert Placement(4).label_selector is None


def test_the_other_nodes_take_the_workers_over() -> None:
    nodes = [node(A, CPU=8), node(B, CPU=2), node(C, CPU=3)]
    found = plan(ScaleSpec(workers=2, cpus_per_worker=2), nodes, {A}, use_gpu=False)
    assert found == Placement(2, (A,))
    assert found.label_selector == {"ray.io/node-id": f"!in({A})"}
    assert plan(ScaleSpec(workers=3, cpus_per_worker=2), nodes, {A}, use_gpu=False) is None
    assert plan(ScaleSpec(workers=1, cpus_per_worker=2), nodes, {A, C}, use_gpu=False) == Placement(1, (A, C))


def test_an_elastic_job_continues_if_the_fewest_workers_fit() -> None:
    nodes = [node(A, CPU=4, GPU=4), node(B, CPU=4, GPU=1), node(C, alive=False, CPU=4, GPU=4)]
    scale = ScaleSpec(workers=4, min_workers=1)
    assert plan(scale, nodes, {A}, use_gpu=True) == Placement((1, 4), (A,)), "Ray says how many fit"
    assert plan(scale, nodes, {A, B}, use_gpu=False) is None
    two = ScaleSpec(workers=4, min_workers=2)
    assert plan(two, nodes, {A}, use_gpu=True) is None


@pytest.mark.parametrize(("limit", "bad"), [(None, []), (2, [A]), (3, [])])
def test_faults_are_counted_by_node(limit: int | None, bad: list[str]) -> None:
    faults = HardwareFaults([A, A, B], limit)
    for ranks in ([0, 1], [1], [2], [-1], []):  # two ranks of one node in one step are one fault
        faults.add(ranks)
    assert faults.bad == bad


def test_a_restart_elsewhere_remembers_the_counts_of_the_node() -> None:
    before = HardwareFaults([A, B], 1)
    before.add([1])
    after = HardwareFaults([B, C], 1)
    after.load_state_dict(before.state_dict())
    assert after.bad == [B]
    after.keep([B])
    assert after.bad == []
    away = HardwareFaults([A, C], 1)
    away.load_state_dict(before.state_dict())
    assert away.bad == []
