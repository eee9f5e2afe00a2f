"""A record is exact when it is written and read back, whatever stands in a row."""

from __future__ import annotations

import json
import math

import pytest

from guard import Incident
from guard.records import COLUMNS, LayerEvidence, RankEvidence, StepRecord, Verdict, WindowRow
from guard.types import StepReport

STEP = StepRecord(
    time=5.0,
    attempt=3,
    step=2,
    action="skipped",
    loss=math.inf,
    verdict=Verdict("nonfinite", "loss", math.inf),
    recovery={"lr_scale": 0.5},
    local_norms=[1.0, math.inf],
    excluded_ranks=[1],
    layers={"inf": -math.inf},
    step_seconds=0.1,
    guard_seconds=0.01,
    grad_norm=1.0,
    learning_rate=0.1,
)


def test_a_step_comes_back_as_it_was_written() -> None:
    row = json.loads(json.dumps(STEP.to_row(), allow_nan=False))
    assert StepRecord.from_row(row) == STEP
    assert (row["verdict"], row["lr"], row["loss"], row["layers"]) == (
        "nonfinite",
        0.1,
        "inf",
        {"inf": "-inf"},
    )
    assert "update_norm" not in row


def test_an_incident_comes_back_as_it_was_written() -> None:
    incident = Incident(1, "nan", 0.0, 2, 1, "spike", "loss", math.inf, 9.0, 1.0, "skipped", "inf")
    incident.layers.append(LayerEvidence("inf", math.inf, None, 2.0))
    incident.ranks.append(RankEvidence(0, math.inf, None, True, None))
    incident.window.append(WindowRow(2, 1, 1.0, 2.0, None, {"loss": math.inf}))
    row = json.loads(json.dumps(incident.to_row(), allow_nan=False))
    assert Incident.from_row(row) == incident
    assert (row["job"], row["layers"][0]["name"], incident.layers[0]["name"]) == ("nan", "inf", "inf")


@pytest.mark.parametrize("value", [None, "text", True, [], {}, [{}], math.nan, 1e300, "nan"])
def test_whatever_a_row_holds_it_is_read(value: object) -> None:
    step = StepRecord.from_row(dict.fromkeys([*COLUMNS, "local_norms", "regularization", "layers"], value))
    assert isinstance(step.loss, float)
    assert isinstance(step.attempt, int)
    names = Incident.__dataclass_fields__
    assert Incident.from_row({**dict.fromkeys(names, value), "unknown": 1}).verdict in ("", "text", "nan")


def test_the_columns_are_those_of_the_record_with_unit_and_kind() -> None:
    assert COLUMNS["guard_seconds"].unit == "s"
    assert (COLUMNS["lr"].kind, COLUMNS["verdict"].kind) == ("number", "text")
    assert StepReport(step=1).to_row().keys() == StepRecord().to_row().keys()
