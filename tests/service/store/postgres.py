"""A PostgreSQL server of the tests' own, from the system's package."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """Its URL; it runs as a user of its own, as it wants. Skips the test where it is not installed."""
    if POSTGRES is None or shutil.which("runuser") is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    folder = Path("/tmp") / f"gradguard-pg-{socket.gethostname()}-{time.monotonic_ns()}"
    folder.mkdir()
    shutil.chown(folder, "postgres")
    as_postgres = ("runuser", "-u", "postgres", "--")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ("-D", str(folder / "data"))
    setup = (*as_postgres, str(POSTGRES / "initdb"), *where, "-A", "trust", "-U", "postgres")
    subprocess.run(setup, check=True, capture_output=True, cwd="/tmp")
    options = f"-h 127.0.0.1 -p {port} -k {folder}"
    control = (*as_postgres, str(POSTGRES / "pg_ctl"), *where, "-l", str(folder / "log"))
    subprocess.run((*control, "-o", options, "-w", "start"), check=True, capture_output=True, cwd="/tmp")
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run((*control, "-m", "immediate", "-w", "stop"), capture_output=True, cwd="/tmp")
        shutil.rmtree(folder, ignore_errors=True)
