"""Tables with a row a metric: ``step,metric,value``, as MLflow and readers of event files export them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guard.logs.columns import USUAL, find, find_loss
from guard.logs.log import Lines, Log

_METRIC = ("metric", "metric_name", "tag", "key", "name")
_VALUE = ("value", "metric_value")


def is_long(header: Sequence[str]) -> bool:
    """Whether the values of all metrics are in one column."""
    columns = (
        find(header, "metric", _METRIC),
        find(header, "value", _VALUE),
        find(header, "step", USUAL["step"]),
    )
    return None not in columns and find_loss(header) is None


def pivoted(log: Log) -> Log:
    """A row a step, with a column a metric."""
    steps: dict[Any, dict[str, Any]] = {}
    step, metric, value = (
        str(find(log.names, signal, usual))
        for signal, usual in (("step", USUAL["step"]), ("metric", _METRIC), ("value", _VALUE))
    )
    names: dict[str, None] = {"step": None}
    for _, record in log.records():
        names[record[metric]] = None
        steps.setdefault(record[step], {"step": record[step]})[record[metric]] = record[value]

    def records() -> Lines:
        return iter((0, record) for record in steps.values())

    return Log("CSV with a row a metric", list(names), records)
