"""On recorded training runs the detector finds the spikes and nothing else."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from guard.config import DetectConfig
from guard.decide.detector import SpikeDetector
from guard.decide.replay import replay
from tests.benchmarks.bench_detection import DETECTORS, Trace, load, ours, score

BESIDE = Path(__file__).resolve().parents[4] / "shared" / "traces"
FOLDER = Path(os.environ.get("GRADGUARD_TRACES", BESIDE))

pytestmark = pytest.mark.skipif(
    not (FOLDER / "labels.csv").is_file(), reason="no recorded runs: set GRADGUARD_TRACES to their folder"
)


@cache
def traces() -> list[Trace]:
    return load(FOLDER)


def test_defaults_meet_the_goal() -> None:
    found = score(traces(), ours).to_dict()
    assert found["false_alarms_per_1000_steps"] <= 0.02
    assert found["false_alarms_per_1000_sampled"] <= 0.2
    assert found["caught"] >= 46 / 48 * found["intervals"]
    assert found["delay_median"] == 0
    assert found["delay_p90"] <= 1
    assert max(found["suspects_per_1000"]) <= 1.5


def test_nan_intervals_are_all_caught_at_their_first_row() -> None:
    for trace in traces():
        starts = {int(start) for start, _, label in trace.labels if label == "nan"}
        found = {alarm["step"] for alarm in replay(FOLDER / f"{trace.name}.csv").alarms}
        assert starts <= found


def test_others_score_as_published() -> None:
    """The scoring and the rivals are checked on what is known of two of them."""
    lightning = score(traces(), DETECTORS["running mean of 10, rtol 2 (Lightning)"]).to_dict()
    assert (lightning["false_alarms"], lightning["caught"], lightning["intervals"]) == ([0, 0], 34, 48)
    z_score = score(traces(), DETECTORS["z > 5 on loss, mean/std of 128 (llm.c)"]).to_dict()
    assert (round(z_score["false_alarms_per_1000_steps"], 2), z_score["caught"]) == (1.35, 39)


@pytest.mark.parametrize(
    "change",
    [
        {"sigmas": 4.0},
        {"sigmas": 6.0},
        {"min_excess": 0.15},
        {"min_excess": 0.35},
        {"window": 384},
        {"window": 1024},
        {"level_rows": 16},
        {"level_rows": 32},
        {"patience": 12},
        {"patience": 24},
    ],
    ids=str,
)
def test_no_threshold_is_fitted_to_these_runs(change: dict[str, float]) -> None:
    config = DetectConfig.model_validate(change)
    found = score(traces(), lambda: ours(config)).to_dict()
    assert sum(found["false_alarms"]) <= 1
    assert found["caught"] >= 0.9 * found["intervals"]


def test_without_the_norm_the_loss_alone_is_enough() -> None:
    blind = [
        Trace(t.name, t.kind, t.interval, [row._replace(grad_norm=None) for row in t.rows], t.labels)
        for t in traces()
    ]
    found = score(blind, ours).to_dict()
    assert found["false_alarms"] == [0, 0]
    assert found["caught"] >= 0.9 * found["intervals"]


def test_fragments_of_large_runs_are_detected_after_a_flat_history() -> None:
    for trace in traces():
        if trace.kind != "snippet":
            continue
        detector = SpikeDetector()
        first = trace.rows[0]
        for _ in range(100):
            detector.observe(first.loss, first.grad_norm)
        found = [r.step for r in trace.rows if detector.observe(r.loss, r.grad_norm).kind == "spike"]
        start, end = next((start, end) for start, end, label in trace.labels if label == "spike")
        assert found
        assert start - trace.interval <= found[0] <= min(end, start + 2 * trace.interval)
