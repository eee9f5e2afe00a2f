"""Services that die, and databases that fill up or vanish, under submissions: is a job lost or made twice?

PYTHONPATH=.:tests/benchmarks python tests/benchmarks/service_chaos/bench_service_chaos.py [--kinds KIND ...]
    [--seed N] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from measure import progress, show

from jobs.cluster.session import PACKAGE_ROOT
from tests.integration.deaths.test_full_disk import ISOLATED, can_mount
from tests.integration.deaths.test_service_deaths import leads
from tests.integration.harness.runner import GRADGUARD, Sandbox
from tests.service.server import Server
from tests.service.store.postgres import POSTGRES, running_postgres
from tests.waiting import until

NOBODY = "http://127.0.0.1:9"
"""Where no Ray answers: the jobs wait."""
CALLERS, KILLS = 3, 6
BEFORE_A_KILL_S = (0.2, 1.5)
RETRY_S = 0.05
BATCH = 20
"""Jobs that one caller submits where no service dies."""
JUMPS_S = (86_400.0, -86_400.0, 3_600.0, -30.0)
DISK_MB = 4
SPEC = {"name": "in-flight", "data": {"dataset": "digits"}}


@dataclass(slots=True)
class Sent:
    """What callers sent: each job by a key of its own, until a service has accepted it."""

    accepted: dict[str, str] = field(default_factory=dict)
    """The id of each job that was accepted, by its key."""
    refused: int = 0
    """Answers of a service that it cannot store anything."""
    unanswered: int = 0
    """Requests on which the service died, or was not there yet."""

    def send(self, server: Server, key: str) -> bool:
        """Submits a job once; whether it was accepted."""
        headers = {"Idempotency-Key": key}
        try:
            answer = httpx.post(f"{server.url}/v1/jobs", json={"spec": SPEC}, headers=headers, timeout=60)
        except httpx.TransportError:
            self.unanswered += 1
            return False
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            self.refused += 1
            return False
        answer.raise_for_status()
        self.accepted[key] = answer.json()["id"]
        return True

    def send_all(self, server: Server, name: str, number: int) -> int:
        """Submits that many jobs, each once; how many were accepted."""
        return sum(self.send(server, f"{name}-{i}") for i in range(number))


def row(kind: str, events: int, sent: Sent, servers: Sequence[Server], **more: bool) -> dict[str, Any]:
    """What became of the jobs. ``more`` are properties of this kind alone."""
    listed = [[job.id for job in server.client().list()] for server in servers]
    wanted = set(sent.accepted.values())
    return {
        "kind": kind,
        "events": events,
        "accepted": len(sent.accepted),
        "refused": sent.refused,
        "unanswered": sent.unanswered,
        "lost": max(len(wanted - {*ids}) for ids in listed),
        "twice": max(len(ids) for ids in listed) - len(wanted),
        "right": all(more.values()) and all(sorted(ids) == sorted(wanted) for ids in listed),
    }


@contextmanager
def services(
    folder: Path, number: int, *options: str, command: tuple[str, ...] = (GRADGUARD,)
) -> Iterator[list[Server]]:
    """That many services on one storage, ended afterwards."""
    with ExitStack() as stack:
        started = []
        for _ in range(number):
            chosen = (f"--address={NOBODY}", "--storage=store", *options)
            started.append(Server(Sandbox(folder), *chosen, command=command))
            stack.callback(started[-1].end)
        yield started


def killed(folder: Path, kind: str, seed: int, number: int, database: str) -> dict[str, Any]:
    """Services killed at random while callers submit to any of them until each job is accepted."""
    dice, sent = random.Random(seed), Sent()
    with services(folder, number, f"--database={database}") as servers:
        done = threading.Event()

        def call(caller: int) -> None:
            choice = random.Random(seed + caller + 1)
            for i in itertools.takewhile(lambda _: not done.is_set(), itertools.count()):
                while not sent.send(choice.choice(servers), f"{caller}-{i}"):
                    time.sleep(RETRY_S)

        callers = [threading.Thread(target=call, args=(i,)) for i in range(CALLERS)]
        for caller in callers:
            caller.start()
        for _ in range(KILLS):
            time.sleep(dice.uniform(*BEFORE_A_KILL_S))  # the instant is what varies; nothing waits for it
            victim = dice.choice(servers)
            victim.kill()
            victim.start()
        done.set()
        for caller in callers:
            caller.join()
        return row(kind, KILLS, sent, servers)


def one_service(folder: Path, seed: int) -> dict[str, Any]:
    return killed(folder, "one service, killed", seed, 1, f"sqlite:///{folder}/s.db")


def two_services(folder: Path, seed: int) -> dict[str, Any]:
    return killed(folder, "two services on SQLite, killed", seed, 2, f"sqlite:///{folder}/s.db")


def two_on_postgresql(folder: Path, seed: int) -> dict[str, Any]:
    with running_postgres() as url:
        return killed(folder, "two services on PostgreSQL, killed", seed, 2, url)


def full_disk(folder: Path, _: int) -> dict[str, Any]:
    """The file system of the database is full for a while."""
    disk, sent = folder / "disk", Sent()
    disk.mkdir()
    mounted = f'mount -t tmpfs -o size={DISK_MB}m none {disk} && exec {GRADGUARD} "$@"'
    command = (*ISOLATED, mounted, "gradguard")
    with services(folder, 1, f"--database=sqlite:///{disk}/s.db", command=command) as (server,):
        inside = Path(f"/proc/{server.process.pid}/root{disk}/ballast")
        before = sent.send_all(server, "before", BATCH)
        with inside.open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(1 << 12))
            except OSError:
                pass
        sent.send_all(server, "full", 10 * BATCH)
        refuses, healthy = sent.refused > 0, answers(server, "/healthz")
        inside.unlink()
        after = sent.send_all(server, "after", BATCH)
        more = {"refuses": refuses, "healthy": healthy, "works": before == after == BATCH}
        return row("full disk under the database", 1, sent, [server], **more)


def deleted_database(folder: Path, _: int) -> dict[str, Any]:
    """The file of the database is deleted, and comes back from a backup with the next start."""
    sent = Sent()
    with services(folder, 1, f"--database=sqlite:///{folder}/s.db") as (server,):
        before = sent.send_all(server, "before", BATCH)
        server.end()
        backup = shutil.copy(folder / "s.db", folder / "backup.db")
        server.start()
        for file in folder.glob("s.db*"):
            file.unlink()
        refused = sent.send_all(server, "gone", BATCH) == 0
        healthy = answers(server, "/healthz")
        server.end()
        shutil.copy(backup, folder / "s.db")
        server.start()
        after = sent.send_all(server, "after", BATCH)
        more = {"refused": refused, "healthy": healthy, "works": before == after == BATCH}
        return row("deleted database", 1, sent, [server], **more)


def clock_jumps(folder: Path, _: int) -> dict[str, Any]:
    """The wall clock jumps while the service runs."""
    clock, sent = folder / "clock", Sent()
    clock.write_text("0")
    command = (sys.executable, str(PACKAGE_ROOT / "tests" / "service" / "shifted_clock.py"), str(clock))
    with services(folder, 1, f"--database=sqlite:///{folder}/s.db", command=command) as (server,):
        works = True
        for number, jump in enumerate((0.0, *JUMPS_S)):
            clock.write_text(str(jump))
            works &= sent.send_all(server, f"{number}", BATCH) == BATCH
            until(lambda: leads(server), what="it no longer supervises")
        return row("clock jumps", len(JUMPS_S), sent, [server], works=works)


def answers(server: Server, path: str) -> bool:
    """Whether the service says that all is well."""
    return httpx.get(f"{server.url}{path}", timeout=60).status_code == httpx.codes.OK


KINDS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "one": one_service,
    "two": two_services,
    "postgresql": two_on_postgresql,
    "full-disk": full_disk,
    "deleted": deleted_database,
    "clock": clock_jumps,
}


def missing(kind: str) -> str | None:
    """What this machine lacks for a kind."""
    if kind == "full-disk" and not can_mount():
        return "the right to mount a file system"
    return "PostgreSQL" if kind == "postgresql" and POSTGRES is None else None


def main() -> None:
    """Publishes a row for each kind. Fails if a job was lost or doubled, or something else was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for kind in options.kinds:
        if lack := missing(kind):
            progress(f"{kind} is skipped: it needs {lack}")
            continue
        progress(kind)
        with tempfile.TemporaryDirectory(prefix="service-chaos-") as folder:
            rows.append(KINDS[kind](Path(folder), options.seed))
    show("jobs submitted to a service", rows, options.json, seeds=[options.seed])
    sys.exit(not all(row["right"] for row in rows))


if __name__ == "__main__":
    main()
