"""The HTTP side of the hub: one page in Prometheus' text format."""

from __future__ import annotations

import gzip
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, ThreadingWSGIServer
from prometheus_client.registry import Collector

from guard.record.exposition import Family, render
from jobs.observability.hosts import is_loopback, names_loopback

logger = logging.getLogger(__name__)

PUSHES = Family("counter", "hub_pushes", "Snapshots that jobs have pushed to the hub since it started.")
STATE = Family("gauge", "hub_job", "1 for each job, by its state.", ("state",))
LAST_PUSH = Family(
    "gauge", "hub_last_push_timestamp_seconds", "When the job began or last pushed, unix time."
)
HUB_FAMILIES = (PUSHES, STATE, LAST_PUSH)

HEAD_S = 10.0
"""Longest time for a request."""

STALL_S = 60.0
"""Longest time for an answer to be read."""

MOST_CONNECTIONS = 64

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


class _Handler(WSGIRequestHandler):
    """Answers one request that arrives in time."""

    timeout = HEAD_S

    def handle(self) -> None:
        """Each read has this time, and so has the whole request: one that drips in is dropped."""
        self._late = threading.Timer(self.timeout, self.connection.shutdown, (socket.SHUT_RDWR,))
        self._late.daemon = True
        self._late.start()
        try:
            super().handle()
        except OSError:  # too slow, or gone
            self.close_connection = True
        finally:
            self._late.cancel()

    def parse_request(self) -> bool:
        """The request is whole: from now on the client reads."""
        whole = super().parse_request()
        self._late.cancel()
        self.connection.settimeout(STALL_S)
        return whole

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


class _Server(ThreadingWSGIServer):
    """At most ``MOST_CONNECTIONS`` at a time; more are closed."""

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begins a thread, unless there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One request, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, _: Any, client_address: Any) -> None:
        """A client that is gone is no error."""
        logger.debug("a scrape by %s broke off", client_address)


def _start(port: int, host: str, rows: Rows) -> tuple[WSGIServer, threading.Thread]:
    loopback = is_loopback(host)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if loopback and not names_loopback(environ.get("HTTP_HOST", "")):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"the metrics hub accepts only a loopback name, such as 127.0.0.1\n"]
        body = page(*rows())
        headers = [("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body = gzip.compress(body, COMPRESSION)
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    server = make_server(host, port, app, _Server, _Handler)
    thread = threading.Thread(target=server.serve_forever, name="metrics-hub", daemon=True)
    thread.start()
    return server, thread
