"""uvicorn's HTTP/1.1 protocol with deadlines for slow clients."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from jobs.errors import JobError

MOST_CONNECTIONS = 900
"""More are answered 503: the usual limit of a process is 1,024 open files."""

LARGEST_HEAD = 64 << 10

HEAD_S = 20.0
"""Longest time for the head of a request, from the connection or its first byte."""

STALL_S = 120.0
"""A client that reads nothing of an answer for this long is disconnected."""


class DeadlineProtocol(H11Protocol):
    """One connection; uvicorn itself would wait forever, and connections are limited."""

    head_s, stall_s = HEAD_S, STALL_S
    _head: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The deadline of the first head starts."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """The deadline applies while a head is incomplete."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the deadlines."""
        super().connection_lost(exc)
        for deadline in (self._head, self._stalled):
            if deadline is not None:
                deadline.cancel()

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.head_s, self._without_head)

    def _without_head(self) -> None:
        self._head = None
        answered = self.cycle is None or self.cycle.response_complete
        if self.conn.their_state is h11.IDLE and answered:
            self.transport.abort()


def server_config(app: Any, host: str, port: int, tls: tuple[Path | None, Path | None]) -> uvicorn.Config:
    """uvicorn's settings: port 0 takes a free one; ``tls`` is the certificate and the private key, PEM,
    checked by ``check_tls``; both None for plain HTTP."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=DeadlineProtocol,
        ws="none",
        ssl_certfile=tls[0],
        ssl_keyfile=tls[1],
        log_config=None,
        access_log=False,  # it has paths and client addresses; /metrics has the counts
        timeout_graceful_shutdown=3,
        server_header=False,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        limit_concurrency=MOST_CONNECTIONS,
    )


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raises JobError if these files cannot be used for TLS."""
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise JobError("--tls-cert and --tls-key go together: give both or neither")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:  # also what ssl raises
        why = error.strerror or str(error)
        raise JobError(f"--tls-cert {certificate}, --tls-key {key}: {why}; both are PEM files") from None
