"""Limits of size and rate, checked before a handler sees a request."""

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.observability.hosts import names_loopback
from service.api.callers import Callers
from service.api.context import Limits
from service.api.problems import Problem, answer

UPLOADS = ("/v1/packages", "/v1/replay")
UNLIMITED = ("/healthz", "/readyz", "/metrics")
PAGE_FILES = "/page/"
"""The files of the web page: small, and the same for every caller."""

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Gate:
    """Middleware around the app: rates, sizes, security headers."""

    def __init__(self, app: ASGIApp, limits: Limits, callers: Callers, *, loopback: bool) -> None:
        self._app, self._limits, self._callers, self._loopback = app, limits, callers, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        if (problem := self._refusal(scope)) is not None:
            await answer(problem)(scope, receive, send)
        else:
            await self._limited(scope, receive, send)

    def _refusal(self, scope: Scope) -> Problem | None:
        """A foreign page in a browser made the request (DNS rebinding, or cross-origin), or too many came."""
        host, origin = _header(scope, b"host"), _header(scope, b"origin")
        if self._loopback and not names_loopback(host):
            return Problem(403, "this service accepts only a loopback name, such as http://127.0.0.1")
        if origin and scope["method"] not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            return Problem(403, "a page of another origin may not change anything here")
        limited = scope["path"] not in UNLIMITED and not scope["path"].startswith(PAGE_FILES)
        if limited and not self._callers.take(_header(scope, b"authorization"), _address(scope)):
            return Problem(429, "too many requests; slow down", headers={"Retry-After": "1"})
        return None

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = self._limits.upload_bytes if scope["path"] in UPLOADS else self._limits.body_bytes
        too_large = Problem(413, f"the request is larger than the limit of {most} bytes")
        if _declared(scope) > most:
            await answer(too_large)(scope, receive, send)
            return
        body = _Body(receive, most, self._limits)

        async def watched(message: Message) -> None:
            if body.refused is None:
                await send(message)

        await self._app(scope, body, watched)
        if body.refused is not None:
            problem = too_large if body.refused == 413 else Problem(408, "the request did not arrive in time")
            await answer(problem)(scope, receive, send)


def _address(scope: Scope) -> str:
    client: Any = scope.get("client")
    return client[0] if client else "?"


def _declared(scope: Scope) -> int:
    value = _header(scope, b"content-length")
    return int(value) if value.isdigit() and len(value) < 20 else 0


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


class _Body:
    """The body of a request, which ends at once if it is too large or does not arrive."""

    def __init__(self, receive: Receive, most: int, limits: Limits) -> None:
        self._receive, self._left, self._pause_s = receive, most, limits.body_pause_s
        self._until = time.monotonic() + limits.body_s
        self._complete = False
        self.refused: int | None = None

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()  # until the client is gone
        try:
            patience_s = max(0.0, min(self._pause_s, self._until - time.monotonic()))
            message = await asyncio.wait_for(self._receive(), patience_s)
        except TimeoutError:
            return self._refuse(408)
        self._left -= len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return self._refuse(413) if self._left < 0 else message

    def _refuse(self, status: int) -> Message:
        self.refused = status
        return {"type": "http.disconnect"}


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *((n, v) for n, v in HEADERS if n not in given)]
        await send(message)

    return sending
