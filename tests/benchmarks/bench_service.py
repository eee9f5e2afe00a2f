"""What the service bears: python tests/benchmarks/bench_service.py

A thousand jobs in the store, two hundred who follow one log, a log of 100 MB, and a client that stops
reading. The server runs in a process of its own; no cluster is needed.
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
import time
from pathlib import Path

import httpx
import psutil
import uvicorn

from service.api import Context, Limits, make_app
from service.masking import Mask
from service.store import JobRow, JobStore, Packages, Tokens, open_database
from service.supervise.log_spool import LogSpool, log_path

JOB = "job-0"
UNLIMITED = Limits(requests_per_s=1e9, burst=1_000_000_000, follow_s=600)


def serve(folder: Path, port: int) -> None:
    """The API on the store in a folder."""
    engine = open_database(f"sqlite:///{folder}/service.db")
    context = Context(
        JobStore(engine), Packages(engine), Tokens(engine), folder, auth=False, limits=UNLIMITED
    )
    uvicorn.run(make_app(context), host="127.0.0.1", port=port, log_config=None)


def fill(folder: Path, jobs: int) -> JobStore:
    """A store with so many jobs; the first of them runs."""
    store = JobStore(open_database(f"sqlite:///{folder}/service.db"))
    spec = {"name": "bench", "train": {"max_steps": 1000}, "options": {str(i): i for i in range(100)}}
    for number in range(jobs):
        state = "succeeded" if number else "running"
        created = time.time() - jobs + number
        row = JobRow(
            id=f"job-{number}",
            name="bench",
            state=state,
            created=created,
            submitted_by="bench",
            spec=spec,
            env={},
        )
        store.add(row)
    return store


def listing(url: str, requests: int) -> dict[str, float]:
    """Milliseconds that a page of the list takes, first page and deep ones."""
    took = []
    with httpx.Client(base_url=url) as client:
        cursor = None
        for _ in range(requests):
            query = {"limit": 50, **({"cursor": cursor} if cursor else {})}
            began = time.perf_counter()
            answer = client.get("/v1/jobs", params=query)
            took.append(1000 * (time.perf_counter() - began))
            cursor = answer.json()["next_cursor"]
    return {"p50_ms": statistics.median(took), "p95_ms": statistics.quantiles(took, n=20)[-1]}


async def followers(url: str, folder: Path, store: JobStore, number: int, size: int) -> dict[str, float]:
    """So many clients follow one log while it is written."""
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
    """The job has ended, so its followers may."""
    job.state = "succeeded"


def large_log(url: str, folder: Path, size: int, server: psutil.Process) -> dict[str, float]:
    """A job prints so many bytes: to write them, to read them, and the memory that a stalled client costs."""
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
    """A client that asks for the log and never reads the answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)))
    client.sendall(f"GET /v1/jobs/{JOB}/logs HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return client


def main() -> int:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--log-mb", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        folder = Path(name)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        store = fill(folder, options.jobs)
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, port))
        server.start()
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url)
            figures = {
                "listing": listing(url, 200),
                "following": asyncio.run(followers(url, folder, store, options.followers, 1_000_000)),
                "large_log": large_log(url, folder, options.log_mb * 1_000_000, psutil.Process(server.pid)),
            }
            print(json.dumps(figures, indent=1))
        finally:
            server.kill()
            server.join()
            store.engine.dispose()
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
