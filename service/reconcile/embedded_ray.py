"""The service's own Ray head, on loopback: restarted when it dies, stopped with the service.

``python -m service.reconcile.embedded_ray PORTS`` runs ``ray start`` and restarts it when it dies, until its
standard input is closed. That happens however the service ends, so no process is left behind.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jobs.errors import JobError

PAUSE_S = 2.0
END_S = 20.0
PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
WORKER_PORTS = ("--min-worker-port=20002", "--max-worker-port=29999")


def require_token() -> None:
    """Sets a token in the environment of this process, and so of the head; it is never written to disk. Call
    it before Ray is imported: Ray reads it then."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def embedded_ray(*, num_cpus: int | None = None) -> Iterator[str]:
    """A head for the duration of the block; yields the URL of its dashboard, which survives restarts.

    Every call to it needs the token that ``require_token`` made.
    """
    ports = [str(port) for port in free_ports(len(PORTS))]
    cpus = [] if num_cpus is None else [f"--num-cpus={num_cpus}"]
    runner = subprocess.Popen(
        [sys.executable, "-P", "-m", "service.reconcile.embedded_ray", *ports, *cpus],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=_environment(),
        start_new_session=True,
    )
    assert runner.stdin is not None
    try:
        yield f"http://127.0.0.1:{ports[1]}"
    finally:
        runner.stdin.close()
        try:
            runner.wait(2 * END_S)
        except subprocess.TimeoutExpired:
            runner.kill()


def free_ports(number: int) -> list[int]:
    """Unused ports of the loopback interface."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _environment() -> Mapping[str, str]:
    from jobs.cluster.session import NICENESS
    from jobs.ray_internals.core import LOOPBACK_SETTING

    modules = (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))
    return {
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        **NICENESS,
        **os.environ,
        **LOOPBACK_SETTING,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, modules)),
    }


def _command(ports: list[str], more: list[str], session: str) -> list[str]:
    ray = shutil.which("ray", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if ray is None:
        raise JobError("no `ray` command was found: install ray[default], or set --address")
    return [
        *(ray, "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"),
        *("--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", *WORKER_PORTS),
        *(f"--{name}={port}" for name, port in zip(PORTS, ports, strict=True)),
        f"--temp-dir={session}",
        *more,
    ]


def _keep(ports: list[str], more: list[str]) -> None:
    """Runs the head, and restarts it when it dies, until the service ends."""
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
    """Ends the head and all its child processes."""
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
    _, left = psutil.wait_procs(family, timeout=2.0)
    for process in left:
        process.kill()


if __name__ == "__main__":
    _keep(sys.argv[1:5], sys.argv[5:])
