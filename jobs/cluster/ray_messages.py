"""What Ray prints on its own account, moved from the terminal to the job's log file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray._private import worker


@contextmanager
def ray_messages_to(path: Path) -> Iterator[None]:
    """For the length of the block Ray's messages about dead workers and nodes go to the end of a file.

    Ray offers no setting for it, and its messages fill a screen; what they say is in ours in one line.
    """
    before = worker.print_to_stdstream

    def write(data: dict[str, Any], **_: Any) -> None:
        with suppress(OSError), path.open("a", encoding="utf-8") as file:  # a full disk is no matter here
            file.writelines(f"ray: {line}\n" for line in data.get("lines", []))

    worker.print_to_stdstream = write
    try:
        yield
    finally:
        worker.print_to_stdstream = before
