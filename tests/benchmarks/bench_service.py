"""Load limits of the service: python tests/benchmarks/bench_service.py

A thousand jobs in the store, fifty of them running, two hundred who follow one log, a log of 100 MB, a client
that stops reading, and two supervisors that want the same jobs. The server runs in a process of its own; no
cluster is needed. Times are of the wall clock and, where a machine that is busy would spoil them, of the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil
import uvicorn
from measure import publish

from jobs.spec.job_spec import JobSpec
from jobs.spec.masking import Mask
from service.api import Context, Limits
from service.app import make_app
from service.reconcile.log_spool import LogSpool, log_path
from service.store import JobRow, JobStore, Packages, Tokens, open_database

JOB = "job-0"
UNLIMITED = Limits(requests_per_s=1e9, burst=1_000_000_000, follow_s=600)


def serve(folder: Path, port: int) -> None:
    """The API on the store in a folder."""
    engine = open_database(f"sqlite:///{folder}/service.db")
    context = Context(
        JobStore(engine), Packages(engine), Tokens(engine), folder, auth=False, limits=UNLIMITED
    )
    uvicorn.run(make_app(context), host="127.0.0.1", port=port, log_config=None)


def fill(folder: Path, jobs: int, running: int = 0) -> JobStore:
    """A store with ``jobs`` jobs; the first and the newest run, and the newest have files."""
    store = JobStore(open_database(f"sqlite:///{folder}/service.db"))
    spec = JobSpec.from_dict({"name": "bench", "train": {"max_steps": 1000}})
    for number in range(jobs):
        job_id, runs = f"job-{number}", number == 0 or number >= jobs - running
        if runs and number:
            _files(folder / job_id, spec)
        row = JobRow(
            id=job_id,
            name="bench",
            state="running" if runs else "succeeded",
            created=time.time() - jobs + number,
            submitted_by="bench",
            folder=str(folder / job_id),
            spec=spec.model_dump(mode="json"),
            env={},
        )
        store.add(row)
    return store


def _files(folder: Path, spec: JobSpec, rows: int = 2000) -> None:
    folder.mkdir()
    (folder / "spec.yaml").write_text(spec.to_yaml())
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(rows):
            row = {"time": step, "attempt": step, "step": step, "action": "applied", "loss": 1.0, "lr": 0.1}
            file.write(json.dumps({**row, "local_norms": [0.5] * 16}) + "\n")


def listing(url: str, requests: int, server: psutil.Process) -> dict[str, float]:
    """Milliseconds that a page of the list takes, also a deep one, and what each costs the server."""
    took = []
    with httpx.Client(base_url=url, timeout=60) as client:
        cursor = None
        before = server.cpu_times()
        for _ in range(requests):
            query = {"limit": 50, **({"cursor": cursor} if cursor else {})}
            began = time.perf_counter()
            answer = client.get("/v1/jobs", params=query)
            took.append(1000 * (time.perf_counter() - began))
            cursor = answer.json()["next_cursor"]
        after = server.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return {
        "p50_ms": statistics.median(took),
        "p95_ms": statistics.quantiles(took, n=20)[-1],
        "server_cpu_ms": 1000 * spent / requests,
    }


def two_supervisors(folder: Path, jobs: int) -> dict[str, float]:
    """Two threads, as two services would, take each waiting job into its next state at once."""
    url = f"sqlite:///{folder}/two.db"
    stores = [JobStore(open_database(url)) for _ in range(2)]
    for number in range(jobs):
        row = JobRow(
            id=f"job-{number}", name="two", state="queued", created=time.time(), submitted_by="bench", env={}
        )
        stores[0].add(row)

    def start(row: JobRow) -> str | None:
        if row.state != "queued":
            return None
        row.state, row.attempt = "starting", row.attempt + 1
        return f"attempt {row.attempt}"

    def take(store: JobStore) -> None:
        for number in range(jobs):
            store.change(f"job-{number}", start)

    began = time.perf_counter()
    threads = [threading.Thread(target=take, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    starts = [e.job_id for e in stores[0].events(None, limit=10 * jobs) if e.text.startswith("attempt")]
    for store in stores:
        store.engine.dispose()
    return {"jobs": jobs, "started": len(starts), "started_twice": len(starts) - len(set(starts)), "s": took}


async def followers(url: str, folder: Path, store: JobStore, number: int, size: int) -> dict[str, float]:
    """Many clients follow one log while it is written."""
    limits = httpx.Limits(max_connections=None)

    async def follow(client: httpx.AsyncClient) -> int:
        seen = 0
        async with client.stream("GET", f"{url}/v1/jobs/{JOB}/logs", params={"follow": True}) as answer:
            async for piece in answer.aiter_bytes():
                seen += len(piece)
        return seen

    async def write() -> None:
        spool = LogSpool(log_path(folder, JOB), 0, Mask({}))
        for _ in range(size // 1000):
            spool.write("x" * 999 + "\n")
            await asyncio.sleep(0)
        spool.close()
        store.change(JOB, ended)

    began = time.perf_counter()
    async with httpx.AsyncClient(limits=limits, timeout=300) as client:
        writing = asyncio.create_task(write())
        seen = await asyncio.gather(*(follow(client) for _ in range(number)))
        await writing
    complete = sum(length == size // 1000 * 1000 for length in seen)
    return {"followers": number, "complete": complete, "seconds": time.perf_counter() - began}


def ended(job: JobRow) -> None:
    """Ends the job, and so its followers."""
    job.state = "succeeded"


def large_log(url: str, folder: Path, size: int, server: psutil.Process) -> dict[str, float]:
    """The log of a job: time to write and to read it, and the memory of a stalled client."""
    began = time.perf_counter()
    spool = LogSpool(log_path(folder, JOB), 0, Mask({"API_KEY": "hunter2hunter2"}))
    for _ in range(size // 20_000):
        spool.write("x" * 19_999 + "\n")
    spool.close()
    written = time.perf_counter() - began
    before = server.memory_info().rss
    stalled = _stalled(url)
    with httpx.stream("GET", f"{url}/v1/jobs/{JOB}/logs", timeout=300) as answer:
        read = sum(len(piece) for piece in answer.iter_bytes())
    took = time.perf_counter() - began - written
    grown = (server.memory_info().rss - before) / 2**20
    stalled.close()
    return {"MB": read / 1e6, "write_s": written, "read_s": took, "server_grew_MiB": grown}


def _stalled(url: str) -> socket.socket:
    """A client that requests the log and never reads the response."""
    host, _, port = url.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)))
    client.sendall(f"GET /v1/jobs/{JOB}/logs HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return client


def main() -> int:
    """Prints a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--log-mb", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        folder = Path(name)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        store = fill(folder, options.jobs, running=min(50, options.jobs // 2))
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, port))
        server.start()
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url)
            process = psutil.Process(server.pid)
            listing(url, 5, process)  # the first ones import and compile
            figures = {
                f"a page of the list, {options.jobs} jobs": listing(url, 200, process),
                "followers of one log": asyncio.run(
                    followers(url, folder, store, options.followers, 1_000_000)
                ),
                "a large log": large_log(url, folder, options.log_mb * 1_000_000, process),
                "two supervisors": two_supervisors(folder, 200),
            }
        finally:
            server.kill()
            server.join()
            store.engine.dispose()
    publish("service", {title: [figure] for title, figure in figures.items()}, options.json)
    return 0


def _wait(url: str) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/healthz")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    sys.exit(main())
