"""Receivers on loopback that keep what they get: a webhook, and a server of SMTP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Receiver(ThreadingHTTPServer):
    """A webhook that keeps what is posted to it; a path with ``broken`` answers 500, a file what is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuse_files_with = 0
        self.posts: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, dict(self.headers), body))
        refused = "filename=" in self.path and self.server.refuse_files_with
        self.send_response(refused or (500 if "broken" in self.path else 200))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Silent."""


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Serves while the block runs."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def inbox() -> Iterator[tuple[str, list[EmailMessage]]]:
    """The URL of a server of SMTP, and what it has received."""
    controllers = pytest.importorskip("aiosmtpd.controller")
    handlers = pytest.importorskip("aiosmtpd.handlers")
    received: list[EmailMessage] = []

    class Inbox(handlers.Message):
        def handle_message(self, message: Any) -> None:
            received.append(message_from_bytes(message.as_bytes(), policy=default))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    controller = controllers.Controller(Inbox(), hostname="127.0.0.1", port=port, ready_timeout=60)
    controller.start()
    try:
        yield f"smtp://127.0.0.1:{port}", received
    finally:
        controller.stop()
