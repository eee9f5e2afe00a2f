"""Copies the jobs' logs to the service's disk: many clients can follow one, and they outlive Ray's head."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

from jobs.run_dir.jsonl import read_bytes
from jobs.spec.masking import Mask

logger = logging.getLogger(__name__)

LARGEST_LOG = 1 << 30
RETRY_S = 1.0
CUT = b"\n[the log is cut off here: it exceeds the service's limit]\n"


def log_path(root: Path, job_id: str) -> Path:
    """The log file of a job, over all its attempts."""
    return root / ".service" / "logs" / f"{job_id}.log"


def log_size(root: Path, job_id: str) -> int:
    """Its present size in bytes."""
    try:
        return log_path(root, job_id).stat().st_size
    except OSError:
        return 0


def read_log(root: Path, job_id: str, start: int, length: int) -> bytes:
    """A part of it; nothing if it cannot be read, or a link leads elsewhere."""
    path = log_path(root, job_id)
    return read_bytes(path, start, length, path.parent.resolve())


class LogSpool:
    """Writes the log of one attempt, each byte at its offset: writing it twice changes nothing."""

    def __init__(self, path: Path, start: int, mask: Mask, *, largest: int = LARGEST_LOG) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        self._start, self._mask, self._largest = start, mask, largest
        self.restart()

    def restart(self) -> None:
        """The same log follows again from its start."""
        self._position, self._tail = self._start, b""

    def write(self, text: str) -> bool:
        """Writes the next piece; false once the log is too large."""
        piece = self._tail + text.encode(errors="replace")
        place = self._position - len(self._tail)
        masked = self._mask(piece)
        if place + len(masked) > self._largest:
            _write_at(self._file, masked[: max(0, self._largest - place)] + CUT, place)
            return False
        _write_at(self._file, masked, place)
        self._position = place + len(masked)
        keep = self._mask.longest - 1
        self._tail = masked[-keep:] if keep > 0 else b""  # may be the start of a secret
        return True

    def close(self) -> None:
        os.close(self._file)


class LogTails:
    """One thread that follows the logs of all running jobs."""

    def __init__(self, tail: Callable[[str], AsyncIterator[str]], root: Path) -> None:
        self._tail, self._root = tail, root
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="log-tails", daemon=True)
        self._thread.start()

    def follow(self, submission_id: str, job_id: str, start: int, mask: Mask) -> None:
        """Starts to follow an attempt, unless it is followed already."""
        self._run(self._begin, submission_id, job_id, start, mask)

    def done(self, submission_id: str) -> bool:
        """Whether the whole log of an attempt is on disk, or it is not followed."""
        task = self._tasks.get(submission_id)
        return task is None or task.done()

    def forget(self, submission_id: str) -> None:
        """Stops following an attempt."""
        self._run(self._cancel, submission_id)

    def close(self) -> None:
        """Stops following all attempts."""
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result(5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def _run(self, call: Callable[..., None], *arguments: object) -> None:
        done = threading.Event()

        def run() -> None:
            try:
                call(*arguments)
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(5.0)

    def _begin(self, submission_id: str, job_id: str, start: int, mask: Mask) -> None:
        if submission_id not in self._tasks:
            spool = LogSpool(log_path(self._root, job_id), start, mask)
            self._tasks[submission_id] = self._loop.create_task(self._copy(submission_id, spool))

    def _cancel(self, submission_id: str) -> None:
        task = self._tasks.pop(submission_id, None)
        if task is not None:
            task.cancel()

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    async def _copy(self, submission_id: str, spool: LogSpool) -> None:
        try:
            while not await self._copied(submission_id, spool):
                await asyncio.sleep(RETRY_S)
                spool.restart()
        finally:
            spool.close()

    async def _copied(self, submission_id: str, spool: LogSpool) -> bool:
        try:
            async for piece in self._tail(submission_id):
                if not spool.write(piece):
                    return True
        except Exception as error:  # noqa: BLE001 - the log is requested again
            logger.debug("the log of %s broke off: %s", submission_id, error)
            return False
        return True


def _write_at(file: int, content: bytes, place: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written
