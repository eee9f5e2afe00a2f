"""The order of all tests: what takes longest begins first, so that it does not run alone at the end."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

# Commands that tests start end by Ctrl-C, which a background job and nohup ignore, and their children too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logging_is_left_as_it_was() -> Iterator[None]:
    """A test whose code leaves a logger mute fails itself, not the next one that reads the log."""
    before = _levels()
    yield
    after = _levels()
    for name, level in after.items():
        logging.getLogger(name).setLevel(before.get(name, logging.NOTSET))
        assert level == before.get(name, logging.NOTSET), f"the level of the logger {name} was changed"
    assert logging.root.manager.disable == logging.NOTSET


def _levels() -> dict[str, int]:
    return {
        name: logger.level
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith(("guard", "jobs", "service")) and isinstance(logger, logging.Logger)
    }


@pytest.fixture
def sighup() -> Iterator[None]:
    """SIGHUP has its default effect, here and in what the test starts, though ``nohup`` ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests are granted the most time first, then those with slow tests; else the order stays."""
    cost: dict[object, tuple[float, int]] = {}
    for item in items:
        cost[item.path] = max(cost.get(item.path, (0.0, 0)), _cost(item))
    items.sort(key=lambda item: cost[item.path], reverse=True)


def _cost(item: pytest.Item) -> tuple[float, int]:
    granted = item.get_closest_marker("timeout")
    return float(granted.args[0]) if granted else 0.0, item.get_closest_marker("slow") is not None
