"""The kills that the chaos benchmark deals: random ones, and those of certain moments."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_chaos import chaos

from tests.integration.harness.chaos import MOMENTS, of_moments, random_kills


def test_the_kills_follow_from_the_seed() -> None:
    assert random_kills(20, seed=4) == random_kills(20, seed=4)
    assert random_kills(20, seed=4) != random_kills(20, seed=5)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_weights_are_those_of_the_uninterrupted_run_whenever_death_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "harness"))
    kills = of_moments(list(MOMENTS))
    rows, total = chaos(kills, tmp_path)
    assert len(rows) == len(kills), rows
    assert total["resumed"] == len(kills), rows
    assert total["bit_identical"]
    assert total["orphans"] == total["tracebacks"] == 0
