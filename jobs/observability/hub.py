"""One named Ray actor that serves the metrics of all jobs of a cluster and carries commands to them.

Rank 0 of a job pushes cumulative snapshots through a `HubLink`; the hub only mirrors them, so a hub that dies
costs a scrape and loses no total: Ray restarts it on the same port and the next push fills it again.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.actor import ActorHandle

from guard.record.totals import carry_totals
from jobs.observability.hub_server import HubJobRow, serve

logger = logging.getLogger(__name__)

HUB_NAME = "gradguard-hub"
NAMESPACE = "gradguard"
DEFAULT_PORT = 9410

STOP, CHECKPOINT = COMMANDS = ("stop", "checkpoint")
STICKY_COMMANDS = frozenset({STOP})

RUNNING = "running"
EVENTS_KEPT = 1000
ENDED_KEPT_S = 900.0
SILENT_KEPT_S = 86_400.0
PUSHES_IN_FLIGHT = 16
START_TIMEOUT_S = 60.0


@dataclass(slots=True)
class _Job:
    """The hub's data on one job; `state` is `running` or how it ended."""

    touched: float
    pushed_at: float | None = None
    state: str = RUNNING
    snapshot: dict[str, Any] | None = None
    status: dict[str, Any] | None = None
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    commands: set[str] = field(default_factory=set)


class Hub:
    """The actor's class; works as a plain object too.

    Serves Prometheus on `host:port`; on a free port if that one is taken, on loopback if the host is not an
    address of this machine: see `address()`. A job disappears `ended_kept_s` after its end, or
    `silent_kept_s` after its last push if its end was never reported.
    """

    def __init__(
        self,
        port: int = DEFAULT_PORT,
        host: str = "127.0.0.1",
        *,
        ended_kept_s: float = ENDED_KEPT_S,
        silent_kept_s: float = SILENT_KEPT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ended_kept_s = ended_kept_s
        self._silent_kept_s = silent_kept_s
        self._clock = clock
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._pushes = 0
        self._server, self._thread = serve(port, host, self.rows)

    def begin(self, job: str) -> None:
        """A run of `job` starts: commands for an earlier run of this name are dropped."""
        with self._lock:
            entry = self._entry(job)
            entry.state = RUNNING
            entry.pushed_at = time.time()
            entry.commands.clear()

    def push(
        self, job: str, snapshot: dict[str, Any], status: dict[str, Any], events: list[dict[str, Any]]
    ) -> list[str]:
        """Mirrors the latest of `job`; returns its commands: `stop` with every push until the job ends,
        others once. Events that have arrived before (by `seq`) are ignored."""
        with self._lock:
            entry = self._entry(job)
            if entry.state != RUNNING and status.get("phase") != "finished":
                entry.state = RUNNING
            entry.snapshot = carry_totals(entry.snapshot, snapshot)
            entry.status = status
            entry.pushed_at = time.time()
            last = entry.events[-1]["seq"] if entry.events else 0
            entry.events.extend(event for event in events if event["seq"] > last)
            self._pushes += 1
            waiting = sorted(entry.commands)
            entry.commands &= STICKY_COMMANDS
            return waiting

    def command(self, job: str, name: str) -> bool:
        """Queues a command for `job`; False if the job has ended. A job that has not pushed yet gets it with
        its first push."""
        if name not in COMMANDS:
            raise ValueError(f"command must be one of {', '.join(COMMANDS)}; got {name!r}")
        with self._lock:
            self._evict()
            if job in self._jobs and self._jobs[job].state != RUNNING:
                return False
            self._entry(job).commands.add(name)
            return True

    def emit_event(self, job: str, level: str, text: str) -> None:
        """Adds an event of `job` from elsewhere than its rank 0; `level` is info, warning or error."""
        with self._lock:
            entry = self._entry(job)
            last = entry.events[-1]["seq"] if entry.events else 0
            seq = max(last + 1, time.time_ns() // 1000)
            step = (entry.status or {}).get("step", 0)
            entry.events.append({"seq": seq, "time": time.time(), "step": step, "level": level, "text": text})

    def stop_requested(self, job: str) -> bool:
        """Whether a stop of `job` was requested and it has not ended."""
        with self._lock:
            entry = self._jobs.get(job)
            return entry is not None and "stop" in entry.commands

    def status(self, job: str, since_seq: int = 0) -> dict[str, Any]:
        """The last status pushed, the events after `since_seq`, and whether the job has ended."""
        with self._lock:
            entry = self._jobs.get(job)
            if entry is None:
                return {"status": None, "events": [], "ended": False}
            events = [event for event in entry.events if event["seq"] > since_seq]
            return {"status": entry.status, "events": events, "ended": entry.state != RUNNING}

    def end(self, job: str, state: str = "ended") -> None:
        """The job is over; `state` is how (`succeeded`, `failed`, `halted`, `stopped`)."""
        with self._lock:
            if job in self._jobs:
                entry = self._entry(job)
                entry.state = state
                entry.commands.clear()

    def address(self) -> str:
        """The URL that Prometheus scrapes."""
        host, port = str(self._server.server_address[0]), self._server.server_port
        if host in ("0.0.0.0", "::"):
            host = ray.util.get_node_ip_address()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def rows(self) -> tuple[int, list[HubJobRow]]:
        """The data of a scrape: the number of pushes, and each job."""
        with self._lock:
            self._evict()
            rows = [HubJobRow(job, e.state, e.pushed_at, e.snapshot) for job, e in self._jobs.items()]
            return self._pushes, rows

    def _entry(self, job: str) -> _Job:
        entry = self._jobs.setdefault(job, _Job(touched=0.0))
        entry.touched = self._clock()
        return entry

    def _evict(self) -> None:
        now = self._clock()
        for job, entry in list(self._jobs.items()):
            kept_s = self._silent_kept_s if entry.state == RUNNING else self._ended_kept_s
            if now - entry.touched > kept_s:
                del self._jobs[job]


class HubLink:
    """Rank 0's side of the hub: never blocks, never raises.

    A push that cannot be sent, or that the hub did not survive, is dropped: the next one carries the same
    totals and the events that have not arrived. The caller limits how often it pushes.
    """

    def __init__(self, actor: ActorHandle, job: str) -> None:
        self._actor = actor
        self._job = job
        self._seq = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._in_flight: dict[Any, int] = {}
        self._commands: set[str] = set()

    def push(
        self, snapshot: Mapping[str, Any], status: Mapping[str, Any], events: Iterable[Mapping[str, Any]] = ()
    ) -> bool:
        """Sends the latest; returns whether it was sent. Events are kept until they have arrived."""
        for event in events:  # numbers grow across restarts of this process too: they follow the clock
            self._seq = max(self._seq + 1, time.time_ns() // 1000)
            self._events.append({"seq": self._seq, **event})
        self._collect()
        if len(self._in_flight) >= PUSHES_IN_FLIGHT:
            return False
        try:
            reply = self._actor.push.remote(self._job, dict(snapshot), dict(status), list(self._events))
        except Exception:  # noqa: BLE001 - metrics must never end a training
            return False
        self._in_flight[reply] = self._events[-1]["seq"] if self._events else 0
        return True

    def commands(self) -> set[str]:
        """The commands that have arrived and were not acknowledged."""
        self._collect()
        return set(self._commands)

    def acknowledge(self, command: str) -> None:
        """The job carries out ``command``: it is not returned again unless it is sent again."""
        self._commands.discard(command)

    def _collect(self) -> None:
        """Takes the answers that have arrived, without waiting for the rest."""
        if not self._in_flight:
            return
        try:
            ready, _ = ray.wait(list(self._in_flight), num_returns=len(self._in_flight), timeout=0)
        except Exception:  # noqa: BLE001 - as above
            ready = []
        for reply in ready:
            arrived = self._in_flight.pop(reply)
            try:
                self._commands.update(ray.get(reply, timeout=0))
            except Exception:  # noqa: BLE001 - the push is lost; the next one sends its events again
                continue
            while self._events and self._events[0]["seq"] <= arrived:
                self._events.popleft()


def ensure_hub(port: int = DEFAULT_PORT, host: str = "127.0.0.1") -> ActorHandle:
    """The hub of the connected cluster, started on its head node if there is none yet. A warning is logged if
    it does not answer within a minute, or uses another port; training continues either way."""
    hub = (
        ray.remote(Hub)
        .options(
            name=HUB_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=1,
            max_pending_calls=100,
        )
        .remote(port, host)
    )
    try:
        address = ray.get(hub.address.remote(), timeout=START_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        logger.warning("the metrics hub does not answer: %s", error)
        return hub
    if port and urlsplit(address).port != port:
        logger.warning("metrics are served at %s: %s:%d is not free", address, host, port)
    return hub


def stop_hub() -> None:
    """Ends the hub of the connected cluster permanently, if there is one."""
    try:
        hub = ray.get_actor(HUB_NAME, namespace=NAMESPACE)
    except ValueError:
        return
    ray.kill(hub, no_restart=True)
