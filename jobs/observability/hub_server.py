"""The HTTP side of the hub: one page in Prometheus' text format."""

from __future__ import annotations

import gzip
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from guard.record.exposition import Family, render

logger = logging.getLogger(__name__)

PUSHES = Family("counter", "hub_pushes", "Snapshots that jobs have pushed to the hub since it started.")
STATE = Family("gauge", "hub_job", "1 for each job, by its state.", ("state",))
LAST_PUSH = Family(
    "gauge", "hub_last_push_timestamp_seconds", "When the job began or last pushed, unix time."
)
HUB_FAMILIES = (PUSHES, STATE, LAST_PUSH)

COMPRESSION = 1
"""The highest level takes ten times as long and makes 13 MB of text little smaller."""


@dataclass(frozen=True, slots=True)
class HubJobRow:
    """The data of one job in a scrape; `pushed_at` is unix time, None before it began."""

    job: str
    state: str
    pushed_at: float | None
    snapshot: dict[str, Any] | None


Rows = Callable[[], tuple[int, list[HubJobRow]]]


def serve(port: int, host: str, rows: Rows) -> tuple[WSGIServer, threading.Thread]:
    """Serves what `rows` returns at the time of a scrape, in a thread.

    It must start, since the hub also carries status and commands: on a free port if that one is taken, on
    loopback if the host is not an address of this machine.
    """
    for candidate, address in ((port, host), (0, host)):
        try:
            return _start(candidate, address, rows)
        except OSError as error:
            logger.warning("cannot listen on %s:%d: %s", address, candidate, error.strerror)
    return _start(0, "127.0.0.1", rows)


def page(pushes: int, rows: Iterable[HubJobRow]) -> bytes:
    """One scrape: the hub's own metrics, then those of the jobs."""
    rows = list(rows)
    jobs = render(row.snapshot for row in rows if row.snapshot is not None)
    return generate_latest(_Own(pushes, rows)) + jobs.encode()


@dataclass(frozen=True, slots=True)
class _Own(Collector):
    """The hub's own metrics."""

    pushes: int
    rows: list[HubJobRow]

    def collect(self) -> Iterable[Metric]:
        pushes = CounterMetricFamily(f"gradguard_{PUSHES.name}", PUSHES.help)
        pushes.add_metric([], self.pushes)
        state = GaugeMetricFamily(STATE.exported, STATE.help, labels=["job", *STATE.labels])
        last = GaugeMetricFamily(LAST_PUSH.exported, LAST_PUSH.help, labels=["job"])
        for row in self.rows:
            state.add_metric([row.job, row.state], 1)
            if row.pushed_at is not None:
                last.add_metric([row.job], row.pushed_at)
        return [pushes, state, last]


def _start(port: int, host: str, rows: Rows) -> tuple[WSGIServer, threading.Thread]:
    server, thread = start_http_server(port, addr=host, registry=CollectorRegistry())

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = page(*rows())
        headers = [("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body = gzip.compress(body, COMPRESSION)
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    server.set_app(app)
    return server, thread
