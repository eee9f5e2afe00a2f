"""What the hub serves: the time of a job's last push, and compressed text where it is accepted."""

import gzip
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from guard.record.metrics import GuardMetrics
from jobs.observability.hub import Hub
from jobs.observability.hub_server import HubJobRow, page

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
