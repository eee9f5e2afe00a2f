"""A Ray cluster of the tests' own: one head node, in a sandbox, on free ports."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from ray._private import ray_constants

from tests.integration.harness.runner import BIN, Sandbox, descendants, read_until

RAY = str(BIN / "ray")


class Cluster:
    """A head node of its own, in a sandbox of its own."""

    def __init__(self, sandbox: Sandbox, url: str, address: str) -> None:
        self.sandbox = sandbox
        self.url = url
        self.address = address


@contextlib.contextmanager
def running_cluster(path: Path) -> Iterator[Cluster]:
    """A head node for the length of the block."""
    sandbox = Sandbox(path)
    sandbox.environment |= {"RAY_AUTH_MODE": "disabled", ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    ports = free_ports(4)
    session = f"/tmp/gg{ports[0]}"
    head = sandbox.start(
        *(RAY, "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true"),
        *("--dashboard-host=127.0.0.1", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
        f"--port={ports[0]}",
        f"--dashboard-port={ports[1]}",
        f"--dashboard-agent-listen-port={ports[2]}",
        f"--ray-client-server-port={ports[3]}",
        *("--min-worker-port=20002", "--max-worker-port=29999"),
        f"--temp-dir={session}",
    )
    try:
        read_until(head, lambda line: "Ray runtime started" in line)
        url = f"http://127.0.0.1:{ports[1]}"
        wait_for_api(url)
        yield Cluster(sandbox, url, f"127.0.0.1:{ports[0]}")
    finally:
        kill(head)
        shutil.rmtree(session, ignore_errors=True)


@contextlib.contextmanager
def joined_node(cluster: Cluster) -> Iterator[subprocess.Popen[str]]:
    """A second node of two cores, on this machine too, for the length of the block.

    On SIGTERM it is drained, and ends when no job uses it any more.
    """
    script = Path(__file__).with_name("second_node.py")
    node = cluster.sandbox.start(sys.executable, str(script), cluster.address, "2")
    try:
        read_until(node, lambda line: "has joined" in line)
        yield node
    finally:
        end(node)


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def wait_for_api(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            psutil.cpu_percent(interval=0.1)
    raise AssertionError(f"no Jobs API at {url}")


def kill(head: subprocess.Popen[str]) -> None:
    """Ends a head node at once: asked politely, Ray takes half a minute when jobs have run on it."""
    for process in (*descendants(head), head):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()
    assert head.stdout is not None
    head.stdout.close()


def end(node: subprocess.Popen[str]) -> None:
    """Asks a node to end, and kills what is left of it after a while."""
    if node.poll() is not None:  # it died on its own: the test that noticed shows more
        node.communicate()
        return
    first = psutil.Process(node.pid)
    family = [first, *first.children(recursive=True)]
    node.terminate()
    _, left = psutil.wait_procs(family, timeout=10)
    for process in left:
        process.kill()
    node.communicate()
