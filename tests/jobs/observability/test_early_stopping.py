"""Training ends where evaluations no longer improve."""

from __future__ import annotations

import math

import pytest

from jobs.errors import JobError
from jobs.observability.early_stopping import EarlyStopping
from jobs.spec.job_spec import JobSpec


def stopping(**fields: object) -> EarlyStopping:
    spec = JobSpec.from_dict({"train": {"early_stopping": fields}})
    return EarlyStopping(spec.train.early_stopping)


@pytest.mark.parametrize(
    ("fields", "values", "over_after"),
    [
        ({"metric": "max:acc", "patience": 2}, [0.1, 0.2, 0.15, 0.2, 0.9], 4),
        ({"metric": "min:acc", "patience": 2}, [0.9, 0.5, 0.6, 0.4, 0.5, 0.41], 6),
        ({"metric": "max:acc", "patience": 1, "min_delta": 0.1}, [0.5, 0.55], 2),
        ({"metric": "max:acc", "patience": 2}, [0.5, math.nan, math.nan], 3),
        ({"metric": "max:acc", "patience": 3}, [0.1, 0.2, 0.3, 0.4], None),
    ],
)
def test_it_is_over_after_so_many_evaluations_without_improvement(
    fields: dict[str, object], values: list[float], over_after: int | None
) -> None:
    early, first = stopping(**fields), None
    for count, value in enumerate(values, start=1):
        again = stopping(**fields)
        again.load_state_dict(early.state_dict())  # as a resumed job continues
        early = again
        early.add({"acc": value, "other": 0.0})
        if early.over and first is None:
            first = count
    assert first == over_after


def test_without_the_section_it_is_never_over() -> None:
    early = EarlyStopping(None)
    for _ in range(9):
        early.add({"acc": 0.0})
    assert not early.over


def test_a_metric_that_is_not_evaluated_is_named() -> None:
    with pytest.raises(JobError, match="'acc' is not evaluated; there are test_accuracy"):
        stopping(metric="max:acc").add({"test_accuracy": 1.0})
