"""Defaults of the service."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from jobs.client.submission import default_root

HOST, PORT = "127.0.0.1", 8410
DATABASE_VARIABLE = "GRADGUARD_DATABASE"


def default_storage() -> Path:
    """The folder of the jobs, the same as without a service."""
    return default_root()


def default_database(storage: Path) -> str:
    """A file beside the jobs."""
    return f"sqlite:///{storage / '.service' / 'service.db'}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
