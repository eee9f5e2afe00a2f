"""Among thousands of ranks a step does work that is linear in them, and an incident has a bounded size."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from many_ranks.simulated import many_ranks

FEW, MANY = 1000, 8000
LINEAR = 1.1 * MANY / FEW
BAD = float("nan")


def calls(work: Callable[[], Any]) -> int:
    """Calls of Python and of C, and items that generators yield."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that was allocated at once: an array of ranks x ranks would show."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def costs(ranks: int, journal: Path) -> dict[str, int]:
    """Of a healthy step, of a bad one, and of a scrape."""
    with many_ranks(ranks, journal) as many:
        for _ in range(14):
            many.step()
        report = many.step()
        assert report.local_norms is not None
        assert len(report.local_norms) == ranks
        found = {"calls": calls(many.step), "bytes": peak_bytes(many.step)}
        found |= {"bad calls": calls(lambda: many.step(BAD)), "bad bytes": peak_bytes(lambda: many.step(BAD))}
        scrape = many.metrics.snapshot
        return {**found, "scrape calls": calls(scrape), "scrape bytes": peak_bytes(scrape)}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, int]]:
    folder = tmp_path_factory.mktemp("journals")
    return {ranks: costs(ranks, folder / f"{ranks}.jsonl") for ranks in (FEW, MANY)}


def test_the_work_is_at_most_linear_in_the_ranks(measured: dict[int, dict[str, int]]) -> None:
    few, many = measured[FEW], measured[MANY]
    assert {name: many[name] / few[name] for name in few if many[name] > LINEAR * few[name]} == {}


def test_a_healthy_step_makes_no_call_for_each_rank(measured: dict[int, dict[str, int]]) -> None:
    few, many = measured[FEW]["calls"], measured[MANY]["calls"]
    assert abs(many - few) < FEW / 10


def test_an_incident_and_a_scrape_have_a_bounded_size(tmp_path: Path) -> None:
    sizes = {}
    for ranks in (FEW, MANY):
        journal = tmp_path / f"{ranks}.jsonl"
        with many_ranks(ranks, journal) as many:
            for _ in range(14):
                many.step()
            many.step(BAD)
            row = json.loads(journal.read_text().splitlines()[0])
            sizes[ranks] = len(json.dumps(row)), len(json.dumps(many.metrics.snapshot()))
            assert len(row["ranks"]) == 16
    for few, many_bytes in zip(sizes[FEW], sizes[MANY], strict=True):
        assert abs(few - many_bytes) < 0.1 * few
