"""A Ray head of the service's own, on loopback: kept alive, and gone when the service is.

``python -m service.reconcile.embedded_ray PORTS`` runs ``ray start`` and starts it again when it
dies, until its standard input is closed: that happens however the service ends, so nothing is left behind.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jobs.errors import JobError

PAUSE_S = 2.0
END_S = 20.0
WORKER_PORTS = ("--min-worker-port=20002", "--max-worker-port=29999")


def ask_for_token() -> None:
    """A token in the environment of this process, and so of the head, never written to disk. Ray looks
    at it when it is imported: it must not be yet."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def embedded_ray(*, num_cpus: int | None = None) -> Iterator[str]:
    """A head for the length of the block; gives the URL of its dashboard, which stays over restarts.

    Every call to it needs the token that ``ask_for_token`` made.
    """
    ports = [str(port) for port in free_ports(4)]
    cpus = [] if num_cpus is None else [f"--num-cpus={num_cpus}"]
    keeper = subprocess.Popen(
        [sys.executable, "-P", "-m", "service.reconcile.embedded_ray", *ports, *cpus],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=_environment(),
        start_new_session=True,
    )
    assert keeper.stdin is not None
    try:
        yield f"http://127.0.0.1:{ports[1]}"
    finally:
        keeper.stdin.close()
        try:
            keeper.wait(2 * END_S)
        except subprocess.TimeoutExpired:
            keeper.kill()


def free_ports(number: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _environment() -> Mapping[str, str]:
    from jobs.cluster.session import NICENESS
    from jobs.ray_internals.core import LOOPBACK_SETTING

    return {
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        **NICENESS,
        **os.environ,
        **LOOPBACK_SETTING,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")])
        ),
    }


def _command(ports: list[str], more: list[str], session: str) -> list[str]:
    ray = shutil.which("ray", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if ray is None:
        raise JobError("there is no `ray` command: install ray[default], or give --address")
    return [
        *(ray, "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"),
        *("--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", *WORKER_PORTS),
        f"--port={ports[0]}",
        f"--dashboard-port={ports[1]}",
        f"--dashboard-agent-listen-port={ports[2]}",
        f"--ray-client-server-port={ports[3]}",
        f"--temp-dir={session}",
        *more,
    ]


def _keep(ports: list[str], more: list[str]) -> None:
    """Starts the head again and again, until the service is gone."""
    gone = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        gone.set()

    signal.signal(signal.SIGTERM, lambda *_: gone.set())
    threading.Thread(target=wait_for_end, daemon=True).start()
    while not gone.is_set():
        session = tempfile.mkdtemp(prefix="gg", dir="/tmp")
        head = subprocess.Popen(_command(ports, more, session), stdin=subprocess.DEVNULL)
        while head.poll() is None and not gone.wait(0.2):
            pass
        _end(head)
        shutil.rmtree(session, ignore_errors=True)
        gone.wait(PAUSE_S)


def _end(head: subprocess.Popen[bytes]) -> None:
    """The head and whatever it started."""
    import psutil

    try:
        family = psutil.Process(head.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    head.terminate()
    try:
        head.wait(END_S)
    except subprocess.TimeoutExpired:
        head.kill()
    deadline = time.monotonic() + 2.0
    _, left = psutil.wait_procs(family, timeout=max(0.0, deadline - time.monotonic()))
    for process in left:
        process.kill()


if __name__ == "__main__":
    _keep(sys.argv[1:5], sys.argv[5:])
