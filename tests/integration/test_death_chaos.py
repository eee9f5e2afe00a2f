"""The random kills that the chaos benchmark deals."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "bench_chaos.py"
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("bench_chaos", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_kills_follow_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = benchmark(monkeypatch)
    assert bench.random_kills(20, seed=4) == bench.random_kills(20, seed=4)
    assert bench.random_kills(20, seed=4) != bench.random_kills(20, seed=5)
