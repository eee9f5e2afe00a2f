"""The metrics hub: what it mirrors, what it forgets, and what a dead or stopped hub costs the job."""

import os
import signal
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from guard.record.metrics import GuardMetrics
from guard.types import StepReport
from jobs.cluster.session import ray_session
from jobs.observability.command import give
from jobs.observability.hub import EVENTS_KEPT, PUSHES_IN_FLIGHT, Hub, HubLink, ensure_hub, stop_hub
from tests.waiting import until

TRAINING = {"phase": "training"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(address: str) -> Samples:
    with urllib.request.urlopen(address, timeout=30) as response:
        text = response.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def sample(address: str, name: str, **labels: str) -> float | None:
    return scrape(address).get((name, frozenset(labels.items())))


def applied(address: str, job: str) -> float | None:
    return sample(address, "gradguard_steps_total", job=job, action="applied")


def metrics_after(steps: int, job: str) -> GuardMetrics:
    metrics = GuardMetrics(job=job)
    for _ in range(steps):
        report = StepReport(loss=0.5, grad_norm=1.0, learning_rate=0.1, guard_seconds=0.001)
        metrics.totals.observe(report)
        metrics.observe(report)
    return metrics


def event(seq: int) -> dict[str, Any]:
    return {"seq": seq, "time": 0.0, "step": seq, "level": "info", "text": f"event {seq}"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def hub(clock: Clock) -> Iterator[Hub]:
    """The actor's class in this process."""
    hub = Hub(0, clock=clock, ended_kept_s=900, silent_kept_s=3600)
    yield hub
    hub.close()


@pytest.fixture
def job(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


class TestMirror:
    def test_a_push_is_seen_in_the_next_scrape(self, hub: Hub, job: str) -> None:
        before = sample(hub.address(), "gradguard_hub_pushes_total") or 0
        hub.push(job, metrics_after(3, job).snapshot(), TRAINING, [])
        assert applied(hub.address(), job) == 3
        assert sample(hub.address(), "gradguard_hub_job", job=job, state="running") == 1
        assert sample(hub.address(), "gradguard_hub_pushes_total") == before + 1

    def test_jobs_do_not_mix(self, hub: Hub, job: str) -> None:
        other = f"{job}-other"
        for steps, name in ((2, job), (5, other)):
            hub.push(name, metrics_after(steps, name).snapshot(), {**TRAINING, "step": steps}, [event(steps)])
        assert (applied(hub.address(), job), applied(hub.address(), other)) == (2, 5)
        assert hub.status(other) == {
            "status": {"phase": "training", "step": 5},
            "events": [event(5)],
            "ended": False,
        }

    def test_totals_of_a_resumed_job_do_not_fall(self, hub: Hub, job: str) -> None:
        metrics = metrics_after(2, job)
        checkpoint = metrics.state_dict()
        hub.push(job, metrics.snapshot(), TRAINING, [])
        later = metrics_after(5, job)
        later.load_state_dict(checkpoint)
        hub.push(job, later.snapshot(), TRAINING, [])
        resumed = GuardMetrics(job=job)
        resumed.load_state_dict(checkpoint)
        hub.push(job, resumed.snapshot(), TRAINING, [])
        assert applied(hub.address(), job) == 5

    def test_an_unknown_job_has_no_status(self, hub: Hub, job: str) -> None:
        assert hub.status("unknown") == {"status": None, "events": [], "ended": False}

    def test_events_are_given_after_a_number_once_and_in_order(self, hub: Hub, job: str) -> None:
        snapshot = metrics_after(1, job).snapshot()
        hub.push(job, snapshot, TRAINING, [event(1), event(2)])
        hub.push(job, snapshot, TRAINING, [event(2), event(3)])
        assert [each["seq"] for each in hub.status(job)["events"]] == [1, 2, 3]
        assert [each["seq"] for each in hub.status(job, since_seq=2)["events"]] == [3]

    def test_only_the_last_events_are_kept(self, hub: Hub, job: str) -> None:
        events = [event(seq) for seq in range(1, EVENTS_KEPT + 51)]
        hub.push(job, metrics_after(1, job).snapshot(), TRAINING, events)
        assert [each["seq"] for each in hub.status(job)["events"]] == list(range(51, EVENTS_KEPT + 51))


class TestCommands:
    def test_stop_comes_back_until_the_end_and_others_once(self, hub: Hub, job: str) -> None:
        snapshot = metrics_after(1, job).snapshot()
        assert hub.push(job, snapshot, TRAINING, []) == []
        assert hub.command(job, "checkpoint")
        assert hub.command(job, "stop")
        assert hub.push(job, snapshot, TRAINING, []) == ["checkpoint", "stop"]
        assert hub.push(job, snapshot, TRAINING, []) == ["stop"]
        hub.end(job)
        assert hub.push(job, snapshot, TRAINING, []) == []

    def test_a_command_reaches_only_its_job(self, hub: Hub, job: str) -> None:
        other = f"{job}-other"
        hub.command(job, "stop")
        assert hub.push(other, metrics_after(1, other).snapshot(), TRAINING, []) == []

    def test_a_command_waits_for_the_first_push(self, hub: Hub, job: str) -> None:
        assert hub.command(job, "stop")
        assert applied(hub.address(), job) is None
        assert hub.push(job, metrics_after(0, job).snapshot(), TRAINING, []) == ["stop"]

    def test_a_job_that_has_ended_takes_none(self, hub: Hub, job: str) -> None:
        hub.push(job, metrics_after(1, job).snapshot(), TRAINING, [])
        hub.end(job, "succeeded")
        assert not hub.command(job, "stop")

    def test_a_new_run_does_not_carry_out_what_was_left_for_the_last(self, hub: Hub, job: str) -> None:
        hub.command(job, "stop")
        hub.begin(job)
        assert hub.push(job, metrics_after(1, job).snapshot(), TRAINING, []) == []

    def test_an_unknown_command_is_refused_with_the_choices(self, hub: Hub, job: str) -> None:
        with pytest.raises(ValueError, match="stop, checkpoint"):
            hub.command(job, "explode")


class TestEnd:
    def test_an_ended_job_stays_for_a_while_then_disappears(self, hub: Hub, job: str, clock: Clock) -> None:
        hub.push(job, metrics_after(3, job).snapshot(), TRAINING, [])
        hub.end(job, "halted")
        clock.now += 900
        assert applied(hub.address(), job) == 3
        assert sample(hub.address(), "gradguard_hub_job", job=job, state="halted") == 1
        assert hub.status(job)["ended"]
        clock.now += 1
        assert applied(hub.address(), job) is None
        assert sample(hub.address(), "gradguard_hub_job", job=job, state="halted") is None

    def test_a_job_that_died_without_a_word_disappears_too(self, hub: Hub, job: str, clock: Clock) -> None:
        hub.push(job, metrics_after(3, job).snapshot(), TRAINING, [])
        clock.now += 3600
        assert applied(hub.address(), job) == 3
        clock.now += 1
        assert applied(hub.address(), job) is None

    def test_a_job_that_trains_again_is_running_again(self, hub: Hub, job: str, clock: Clock) -> None:
        snapshot = metrics_after(3, job).snapshot()
        hub.push(job, snapshot, TRAINING, [])
        hub.end(job, "failed")
        hub.push(job, snapshot, TRAINING, [])
        clock.now += 901
        assert sample(hub.address(), "gradguard_hub_job", job=job, state="running") == 1

    def test_the_last_push_of_a_finished_job_does_not_bring_it_back(self, hub: Hub, job: str) -> None:
        snapshot = metrics_after(3, job).snapshot()
        hub.push(job, snapshot, TRAINING, [])
        hub.end(job, "succeeded")
        hub.push(job, snapshot, {"phase": "finished"}, [])
        assert hub.status(job)["ended"]

    def test_the_end_of_a_job_that_never_pushed_leaves_nothing(self, hub: Hub, job: str) -> None:
        hub.end("unknown")
        assert not hub.status("unknown")["ended"]


def test_a_port_in_use_is_replaced_by_a_free_one_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        hub = Hub(port)
        try:
            assert hub.address() != f"http://127.0.0.1:{port}/metrics"
            assert sample(hub.address(), "gradguard_hub_pushes_total") == 0
        finally:
            hub.close()
    assert f"127.0.0.1:{port}" in caplog.text


def test_a_host_that_is_not_of_this_machine_is_replaced_by_loopback(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(0, "203.0.113.7")
    try:
        assert hub.address().startswith("http://127.0.0.1:")
        assert sample(hub.address(), "gradguard_hub_pushes_total") == 0
    finally:
        hub.close()
    assert "203.0.113.7" in caplog.text


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """An embedded Ray of this module's own."""
    with (
        tempfile.TemporaryDirectory(prefix="gg", dir="/tmp", ignore_cleanup_errors=True) as scratch,
        pytest.MonkeyPatch.context() as patch,
    ):
        home = Path(scratch, "home")
        home.mkdir()
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_TMPDIR", scratch)
        with ray_session(num_cpus=1):
            yield


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def actor(cluster: None, free_port: int) -> Any:
    return ensure_hub(free_port)


def pid_of(actor: Any) -> int:
    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))


@pytest.mark.slow
class TestActor:
    def test_there_is_one_hub_a_cluster_on_the_port_asked_for(self, actor: Any, free_port: int) -> None:
        assert pid_of(ensure_hub(free_port)) == pid_of(actor)
        assert ray.get(actor.address.remote()) == f"http://127.0.0.1:{free_port}/metrics"

    def test_each_push_is_sent_and_its_events_have_growing_numbers(self, actor: Any) -> None:
        link = HubLink(actor, "direct")
        for number in range(3):
            event = {"step": number, "text": "x"}
            assert link.push(metrics_after(number, "direct").snapshot(), TRAINING, [event])
        assert applied(ray.get(actor.address.remote()), "direct") == 2
        events = ray.get(actor.status.remote("direct"))["events"]
        assert [each["step"] for each in events] == [0, 1, 2]
        assert len({each["seq"] for each in events}) == 3

    def test_events_of_a_restarted_rank_come_after_those_of_the_last(self, actor: Any) -> None:
        for attempt in ("first", "second"):
            link = HubLink(actor, "restarted")
            link.push(metrics_after(1, "restarted").snapshot(), TRAINING, [{"text": attempt}])
        events = ray.get(actor.status.remote("restarted"))["events"]
        assert [each["text"] for each in events] == ["first", "second"]

    def test_commands_come_back_with_the_pushes(self, actor: Any) -> None:
        link = HubLink(actor, "commanded")
        snapshot = metrics_after(1, "commanded").snapshot()
        ray.get([actor.command.remote("commanded", name) for name in ("stop", "checkpoint")])
        assert link.commands() == set()
        link.push(snapshot, TRAINING)
        until(lambda: link.commands() == {"stop", "checkpoint"}, what="both commands")
        link.acknowledge("checkpoint")
        link.push(snapshot, TRAINING)
        ray.get(actor.address.remote())
        assert link.commands() == {"stop"}

    def test_a_command_is_delivered_to_a_job_that_trains_and_to_no_other(self, actor: Any) -> None:
        assert give("delivered", "checkpoint") == "delivered has not started to train: try again later"
        link = HubLink(actor, "delivered")
        snapshot = metrics_after(1, "delivered").snapshot()
        link.push(snapshot, TRAINING)
        ray.get(actor.address.remote())
        assert give("delivered", "checkpoint") is None
        link.push(snapshot, TRAINING)
        until(lambda: link.commands() == {"checkpoint"}, what="the command")
        link.acknowledge("checkpoint")
        assert link.commands() == set(), "carried out once"
        ray.get(actor.end.remote("delivered", "succeeded"))
        assert give("delivered", "checkpoint") == "delivered has ended"

    def test_a_hub_killed_in_training_costs_a_scrape_and_no_total(self, actor: Any) -> None:
        address = ray.get(actor.address.remote())
        metrics = metrics_after(7, "survivor")
        link = HubLink(actor, "survivor")
        link.push(metrics.snapshot(), TRAINING, [{"text": "before"}])
        assert ray.get(actor.status.remote("survivor"))["status"] == TRAINING
        killed = pid_of(actor)
        os.kill(killed, signal.SIGKILL)

        def pushed_again() -> bool:
            link.push(metrics.snapshot(), TRAINING, [])
            try:
                return applied(address, "survivor") == 7 and pid_of(actor) != killed
            except (OSError, ray.exceptions.RayError):
                return False

        until(pushed_again, what="the restarted hub serves the totals on the same port")

    def test_events_that_were_under_way_to_a_dead_hub_arrive_at_the_next(self, actor: Any) -> None:
        link = HubLink(actor, "stubborn")
        snapshot = metrics_after(1, "stubborn").snapshot()
        frozen = pid_of(actor)
        os.kill(frozen, signal.SIGSTOP)
        link.push(snapshot, TRAINING, [{"text": "unsent"}])
        os.kill(frozen, signal.SIGKILL)

        def arrived() -> bool:
            link.push(snapshot, TRAINING)
            try:
                return [e["text"] for e in ray.get(actor.status.remote("stubborn"))["events"]] == ["unsent"]
            except ray.exceptions.RayError:
                return False

        until(arrived, what="the event that the dead hub never saw")

    def test_a_hub_that_hangs_blocks_no_caller_and_holds_few_pushes(self, actor: Any) -> None:
        link = HubLink(actor, "patient")
        hung = pid_of(actor)
        os.kill(hung, signal.SIGSTOP)
        try:
            pushes = (metrics_after(steps, "patient").snapshot() for steps in range(50))
            sent = [link.push(snapshot, TRAINING) for snapshot in pushes]
            assert link.commands() == set()
        finally:
            os.kill(hung, signal.SIGCONT)
        assert sum(sent) == PUSHES_IN_FLIGHT
        link_works = metrics_after(50, "patient").snapshot()
        until(lambda: link.push(link_works, TRAINING), what="a push after the hang")
        assert applied(ray.get(actor.address.remote()), "patient") == 50

    def test_a_hub_that_is_gone_for_good_only_drops_pushes(self, actor: Any) -> None:
        link = HubLink(actor, "orphan")
        stop_hub()
        snapshot = metrics_after(1, "orphan").snapshot()

        for _ in range(2 * PUSHES_IN_FLIGHT):
            link.push(snapshot, TRAINING, [{"text": "x"}])
            assert link.commands() == set()

    def test_a_port_in_use_is_reported_by_the_driver(
        self, cluster: None, caplog: pytest.LogCaptureFixture
    ) -> None:
        stop_hub()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            address = ray.get(ensure_hub(port).address.remote())
        assert str(port) not in address
        assert sample(address, "gradguard_hub_pushes_total") == 0
        assert f"metrics are served at {address}: 127.0.0.1:{port} is not free" in caplog.text
        stop_hub()
