"""The damage benchmark: each kind of damage to a checkpoint once."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.mark.slow
def test_each_kind_of_damage_to_the_newest_checkpoint_is_taken_as_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark = importlib.import_module("bench_damage")
    seeds = range(len(benchmark.FILES), len(benchmark.KINDS))
    found = benchmark.damage_run(seeds, tmp_path)
    assert {damage.kind for damage in found} == set(benchmark.CHECKPOINTS)
    assert [damage for damage in found if damage.wrong] == []
