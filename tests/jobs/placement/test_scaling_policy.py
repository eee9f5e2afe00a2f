"""New workers start only on nodes that stay; a preempted node keeps the workers that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from jobs.placement.scaling_policy import allowed_workers

FOUR, TWO = {"CPU": 4.0}, {"CPU": 2.0}


def count(resources: Mapping[str, Any]) -> int:
    """One worker a CPU."""
    return int(sum(node["CPU"] for node in resources.values()))


@pytest.mark.parametrize(
    ("usable", "preempted", "running", "expected"),
    [
        ({"a": FOUR, "b": TWO}, set(), 0, 6),
        ({"a": FOUR, "b": TWO}, {"b"}, 0, 4),
        ({"a": FOUR, "b": TWO}, {"b"}, 5, 5),
        ({"a": FOUR, "b": TWO}, {"b"}, 6, 6),
        ({"a": FOUR}, set(), 6, 4),
        ({"a": FOUR}, {"a"}, 0, 0),
    ],
    ids=["all", "none starts there", "some stay there", "all stay", "one node avoided", "nowhere"],
)
def test_workers_start_on_nodes_that_stay(
    usable: dict[str, Any], preempted: set[str], running: int, expected: int
) -> None:
    reserved = {"a": FOUR, "b": TWO}
    assert allowed_workers(reserved, usable, preempted, running, count) == expected


def test_no_more_workers_than_ray_has_reserved() -> None:
    assert allowed_workers({"a": TWO}, {"a": FOUR, "b": TWO}, set(), 0, count) == 2
    assert allowed_workers({"a": TWO}, {"a": FOUR, "b": TWO}, {"b"}, 6, count) == 2
