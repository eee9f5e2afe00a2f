"""What the hub serves: the time of a job's last push, and compressed text where it is accepted."""

import gzip
import http.client
import socket
import time
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from guard.record.metrics import GuardMetrics
from jobs.observability import hub_server
from jobs.observability.hub import Hub
from jobs.observability.hub_server import HubJobRow, page
from tests.waiting import until

JOB = "fashion"


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(0)
    yield hub
    hub.close()


def scrape(hub: Hub, **headers: str) -> tuple[bytes, dict[str, str]]:
    request = urllib.request.Request(hub.address(), headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read(), dict(response.headers)


def last_push(hub: Hub) -> float | None:
    for family in text_string_to_metric_families(scrape(hub)[0].decode()):
        for sample in family.samples:
            if sample.name == "gradguard_hub_last_push_timestamp_seconds":
                return sample.value
    return None


def test_the_time_of_a_jobs_last_push_is_exported(hub: Hub) -> None:
    before = time.time()
    hub.command(JOB, "checkpoint")
    assert last_push(hub) is None
    hub.push(JOB, GuardMetrics(job=JOB).snapshot(), {"phase": "training"}, [])
    first = last_push(hub)
    hub.emit_event(JOB, "error", "a worker died")
    hub.command(JOB, "stop")
    assert last_push(hub) == first
    assert first is not None
    assert before <= first <= time.time()


def test_a_job_that_begins_is_exported_before_its_first_push(hub: Hub) -> None:
    hub.begin(JOB)
    assert last_push(hub) is not None


def test_a_scrape_is_compressed_for_whoever_takes_it_so(hub: Hub) -> None:
    hub.push(JOB, GuardMetrics(job=JOB).snapshot(), {"phase": "training"}, [])
    plain, headers = scrape(hub)
    packed, packed_headers = scrape(hub, **{"Accept-Encoding": "gzip"})
    assert gzip.decompress(packed) == plain
    assert packed_headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in headers
    assert (
        headers["Content-Type"]
        == packed_headers["Content-Type"]
        == "text/plain; version=0.0.4; charset=utf-8"
    )


def test_every_name_of_a_page_has_its_help_once() -> None:
    jobs = [GuardMetrics(job=name) for name in ("a", "b", "c")]
    text = page(3, [HubJobRow(m.job, "running", 1.0, m.snapshot()) for m in jobs]).decode()
    helps = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
    assert len(helps) == len(set(helps)) > 30
    assert text.endswith("\n")


@pytest.mark.parametrize(
    ("name", "status"),
    [("localhost", 200), ("127.0.0.1:9410", 200), ("127.0.0.2", 200), ("evil.example", 403), ("", 403)],
)
def test_a_hub_on_loopback_answers_only_under_a_loopback_name(hub: Hub, name: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(hub.address()).port, timeout=30)
    connection.request("GET", "/metrics", headers={"Host": name})
    assert connection.getresponse().status == status
    connection.close()


def test_a_hub_on_another_address_answers_under_any_name() -> None:
    hub = Hub(0, "0.0.0.0")
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{hub._server.server_port}/metrics")
        request.add_header("Host", "head.cluster.local:9410")
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == 200
    finally:
        hub.close()


@pytest.mark.parametrize("sent", [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"])
def test_half_a_request_is_dropped(hub: Hub, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(hub_server._Handler, "timeout", 0.3)
    port = urlsplit(hub.address()).port
    with socket.create_connection(("127.0.0.1", port), timeout=30) as half:
        half.sendall(sent)
        assert half.recv(1 << 16) == b""
    assert scrape(hub)[0].startswith(b"# HELP")


def test_a_request_that_drips_in_is_dropped(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_server._Handler, "timeout", 0.5)
    with socket.create_connection(("127.0.0.1", urlsplit(hub.address()).port), timeout=30) as slow:
        slow.settimeout(0.1)

        def dropped() -> bool:
            try:
                slow.sendall(b"G")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        until(dropped, within_s=30)


def test_connections_beyond_the_limit_are_closed_and_those_within_it_answered(hub: Hub) -> None:
    port = urlsplit(hub.address()).port
    idle = [
        socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(hub_server.MOST_CONNECTIONS)
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one_more:
        until(lambda: _closed(one_more), within_s=30)
    for connection in idle:
        connection.close()
    until(lambda: _answers(hub), within_s=30)


def _closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def _answers(hub: Hub) -> bool:
    try:
        return scrape(hub)[0].startswith(b"# HELP")
    except OSError:
        return False
