"""What befalls services while jobs are submitted, as in the benchmark: none is lost, none is made twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.service_chaos.bench_service_chaos import KINDS, missing

SEED = 19


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_every_accepted_submission_is_there_once(kind: str, tmp_path: Path) -> None:
    if lack := missing(kind):
        pytest.skip(f"needs {lack}")
    found = KINDS[kind](tmp_path, SEED)
    assert found["right"], found
    assert found["accepted"] > 0
