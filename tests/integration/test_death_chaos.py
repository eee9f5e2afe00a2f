"""Random kills at random instants, as the chaos benchmark deals them, only fewer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "bench_chaos.py"
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("bench_chaos", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_three_random_kills_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = benchmark(monkeypatch)
    rows, total = bench.chaos(bench.random_kills(3, seed=1), tmp_path)
    assert (total["kills"], total["resumed"]) == (3, 3), rows
    assert total["orphans"] == 0
    assert total["bit_identical"]


def test_the_kills_follow_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = benchmark(monkeypatch)
    assert bench.random_kills(20, seed=4) == bench.random_kills(20, seed=4)
    assert bench.random_kills(20, seed=4) != bench.random_kills(20, seed=5)
