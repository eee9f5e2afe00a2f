"""The page in a real browser: a server with played jobs, and what must never be."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from service.store import JobRow
from tests.browser import DESK
from tests.service.api.api_fixture import Api
from tests.waiting import until

PHONE = {"width": 360, "height": 740}
WAIT_MS = 60_000


@contextmanager
def served(api: Api) -> Iterator[str]:
    """The URL at which the app of these tests really listens."""
    config = uvicorn.Config(
        api.app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def visitor(
    browser: Any, url: str, *, token: str | None = None, expected: str | None = None, **options: Any
) -> Iterator[Any]:
    """A page of a browser of its own, signed in with a token. In the end nothing must have been complained
    about, but for what is expected, and nothing asked of another host."""
    context = browser.new_context(base_url=url, **{"viewport": DESK, **options})
    context.set_default_timeout(WAIT_MS)
    page, wrong = context.new_page(), list[str]()
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.extend(_abroad(request.url, url)))
    if token is not None:
        context.add_init_script(f"sessionStorage.setItem('gradguard.token', '{token}')")
    yield page
    context.close()
    complaints = [said for said in wrong if expected is None or expected not in said]
    assert not complaints, complaints


def _abroad(asked: str, url: str) -> list[str]:
    return [] if asked.startswith("blob:") or urlsplit(asked).netloc == urlsplit(url).netloc else [asked]


def play(api: Api, job_id: str, state: str, **fields: Any) -> JobRow:
    """A job in the store that nothing runs; its files are the caller's."""
    row = JobRow(
        **{
            "id": job_id,
            "name": job_id,
            "state": state,
            "created": time.time(),
            "submitted_by": "ada",
            "attempt": 1,
            "folder": str(api.root / "runs" / job_id),
            **fields,
        }
    )
    return api.context.store.add(row)[0]
