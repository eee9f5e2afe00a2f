"""Defaults of the service."""

from pathlib import Path

from jobs.client.submission import default_root

HOST, PORT = "127.0.0.1", 8410
DATABASE_VARIABLE = "GRADGUARD_DATABASE"


def storage_folder(storage: Path | None) -> Path:
    """The folder of the jobs; by default the same as without a service."""
    return (storage or default_root()).expanduser().absolute()


def default_database(storage: Path) -> str:
    """A file beside the jobs."""
    return f"sqlite:///{storage / '.service' / 'service.db'}"
