"""Jobs at a GradGuard service, over HTTP."""

from __future__ import annotations

import codecs
import secrets
import tarfile
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import httpx

from jobs.client.backend import SubmitRequest, Wanted
from jobs.client.errors import ClientError, Conflict, JobNotFound, NotAllowed, Refused, TryLater, Unreachable
from jobs.client.models import ENDED, MOST_AT_ONCE, CheckpointInfo, Event, JobInfo, JobList, Series
from jobs.client.working_dir import pack

T = TypeVar("T")
Reader = Callable[[httpx.Response, int], Iterator[tuple[T, int]]]
"""Gives each item of a stream with the position after it."""

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
DELIVERY_TIMEOUT = httpx.Timeout(150.0, connect=10.0)
STREAM_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
RETRIES = 4
PAUSE_S = 0.5
BY_CODE: dict[int, type[ClientError]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: JobNotFound,
    409: Conflict,
    429: TryLater,
    503: TryLater,
}


class ServiceBackend:
    """Talks to ``gradguard serve``. Requests that may be repeated are, when the connection breaks."""

    def __init__(self, address: str, *, token: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.address = address.rstrip("/")
        self._http = httpx.Client(base_url=f"{self.address}/v1", headers=headers, timeout=TIMEOUT)
        weakref.finalize(self, self._http.close)

    def submit(self, request: SubmitRequest) -> JobInfo:
        """The key lets a submission be repeated that may have arrived or not."""
        body = {
            "spec": request.spec.model_dump(mode="json"),
            "priority": request.priority,
            "env": request.env,
            "working_dir": None,
        }
        if request.working_dir is not None:
            zipped = {"content": pack(request.working_dir), "headers": {"Content-Type": "application/zip"}}
            body["working_dir"] = self._ask("POST", "/packages", **zipped).json()["id"]
        if request.max_restarts is not None:
            body["max_restarts"] = request.max_restarts
        key = request.key or secrets.token_hex(16)
        return self._job("POST", "/jobs", json=body, headers={"Idempotency-Key": key})

    def page(self, wanted: Wanted, *, cursor: str | None, limit: int) -> JobList:
        query: dict[str, Any] = {"status": list(wanted.statuses), "name": wanted.name, "tag": wanted.tag}
        query |= {"cursor": cursor, "limit": limit}
        given = {key: value for key, value in query.items() if value}
        return JobList.model_validate(self._ask("GET", "/jobs", params=given).json())

    def get(self, job_id: str) -> JobInfo:
        return self._job("GET", f"/jobs/{job_id}")

    def stop(self, job_id: str) -> None:
        self._ask("POST", f"/jobs/{job_id}/stop")

    def checkpoint(self, job_id: str) -> None:
        """See ``Backend``."""
        self._ask("POST", f"/jobs/{job_id}/checkpoint", timeout=DELIVERY_TIMEOUT)

    def resume(self, job_id: str) -> JobInfo:
        return self._job("POST", f"/jobs/{job_id}/resume")

    def delete(self, job_id: str, *, files: bool) -> None:
        self._ask("DELETE", f"/jobs/{job_id}", params={"files": files})

    def clone(self, job_id: str, changes: Sequence[str], *, priority: int | None) -> JobInfo:
        body = {"set": list(changes), "priority": priority}
        key = secrets.token_hex(16)
        return self._job("POST", f"/jobs/{job_id}/clone", json=body, headers={"Idempotency-Key": key})

    def logs(self, job_id: str, *, follow: bool, offset: int) -> Iterator[str]:
        pieces = self._stream(job_id, "logs", _pieces, "offset", offset, follow=follow)
        yield from codecs.iterdecode(pieces, "utf-8", "replace")

    def events(self, job_id: str, *, after: int) -> Iterator[Event]:
        return self._stream(job_id, "events", _events, "after", after, follow=True)

    def incidents(self, job_id: str, newest: int | None) -> list[dict[str, Any]]:
        if newest is not None and newest <= MOST_AT_ONCE:
            place = {"start": -1, "limit": newest}
            with suppress(Refused):  # by an older service
                rows: list[dict[str, Any]] = self._ask(
                    "GET", f"/jobs/{job_id}/incidents", params=place
                ).json()
                return rows
        return self._all_incidents(job_id)[-newest if newest else None :]

    def _all_incidents(self, job_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self._ask("GET", f"/jobs/{job_id}/incidents", params={"start": len(found)}).json()
            if not page or page[:1] == found[:1]:  # an older service sends all at once, each time
                return found
            found += page

    def metrics(self, job_id: str, columns: Sequence[str], *, after_attempt: int, points: int) -> Series:
        query = {"column": list(columns), "after_attempt": after_attempt, "points": points}
        return Series.model_validate(self._ask("GET", f"/jobs/{job_id}/metrics", params=query).json())

    def checkpoints(self, job_id: str) -> list[CheckpointInfo]:
        rows = self._ask("GET", f"/jobs/{job_id}/checkpoints").json()
        return [CheckpointInfo.model_validate(row) for row in rows]

    def report(self, job_id: str) -> str:
        return self._ask("GET", f"/jobs/{job_id}/report").text

    def download(self, job_id: str, name: str, to: BinaryIO) -> None:
        """See ``Backend``."""
        self._receive(f"/jobs/{job_id}/files/{name}", to)

    def download_checkpoint(self, job_id: str, step: int, to: Path) -> None:
        """See ``Backend``."""
        with tempfile.TemporaryFile(dir=to) as file:
            self._receive(f"/jobs/{job_id}/checkpoints/{step}", file)
            file.seek(0)
            with tarfile.open(fileobj=file) as archive:
                archive.extractall(to, filter="data")

    def close(self) -> None:
        self._http.close()

    def _job(self, method: str, path: str, **request: Any) -> JobInfo:
        return JobInfo.model_validate(self._ask(method, path, **request).json())

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Everything here may be repeated: submissions carry a key, and the rest changes nothing twice."""
        for attempt in range(RETRIES):
            try:
                response = self._http.request(method, path, **request)
                break
            except httpx.RequestError as error:
                if attempt + 1 == RETRIES:
                    raise Unreachable(f"the service at {self.address} does not answer: {error}") from error
                time.sleep(PAUSE_S * 2**attempt)
        _check(response)
        return response

    def _receive(self, path: str, to: BinaryIO) -> None:
        try:
            with self._http.stream("GET", path, timeout=STREAM_TIMEOUT) as response:
                if response.is_error:
                    response.read()
                _check(response)
                for piece in response.iter_bytes():
                    to.write(piece)
        except httpx.RequestError as error:
            raise Unreachable(f"the download from {self.address} broke off: {error}") from error

    def _stream(
        self, job_id: str, what: str, read: Reader[T], field: str, position: int, *, follow: bool
    ) -> Iterator[T]:
        """What is there from a position on; with ``follow`` until the job has ended and everything was read.

        A connection that breaks is made again where it broke.
        """
        url, failures = f"/jobs/{job_id}/{what}", 0
        while True:
            ended = not follow or self.get(job_id).status in ENDED
            query = {field: position, "follow": follow}
            try:
                with self._http.stream("GET", url, params=query, timeout=STREAM_TIMEOUT) as response:
                    if response.is_error:
                        response.read()
                    _check(response)
                    for item, after in read(response, position):
                        position, failures = after, 0
                        yield item
            except httpx.RequestError as error:
                failures += 1
                if failures > RETRIES:
                    raise Unreachable(f"the service at {self.address} does not answer: {error}") from error
                time.sleep(PAUSE_S * 2**failures)
                continue
            if ended:
                return


def _pieces(response: httpx.Response, position: int) -> Iterator[tuple[bytes, int]]:
    for piece in response.iter_bytes():
        position += len(piece)
        yield piece, position


def _events(response: httpx.Response, _: int) -> Iterator[tuple[Event, int]]:
    for line in response.iter_lines():
        if line.startswith("data:"):
            event = Event.model_validate_json(line.removeprefix("data:"))
            yield event, event.seq


def _check(response: httpx.Response) -> None:
    """Turns a problem document into the error that it is."""
    if not response.is_error:
        return
    kind = BY_CODE.get(response.status_code, Refused if response.is_client_error else ClientError)
    try:
        problem = response.json()
        text = str(problem.get("detail") or problem.get("title"))
    except (ValueError, AttributeError):
        text = f"the service answered {response.status_code}"
    raise kind(text)
