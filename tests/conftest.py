"""The order of all tests: what takes longest begins first, so that it does not run alone at the end."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

# Commands that tests start end by Ctrl-C, which a background job and nohup ignore, and their children too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
