"""The API as an attacker sees it: packages, names, bombs, other hosts, and clients that never finish."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn

from jobs.spec.job_spec import JobSpec
from service.api import Limits
from service.api.http_protocol import LARGEST_HEAD, DeadlineProtocol, server_config
from service.api.view import may_read
from service.reconcile.log_spool import log_path
from tests.service.api.api_fixture import SPEC, Api, problem
from tests.waiting import until

BOMB = "{a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1], " + ", ".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)
)
DEADLINE_S = 60


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def test_no_route_answers_without_a_token_and_none_changes_anything_for_a_reader(api: Api) -> None:
    nobody, reader = api.client(None), api.client("read")
    tried = 0
    for path, operations in api.app.openapi()["paths"].items():
        if not path.startswith(("/v1/", "/metrics")):
            continue
        url = re.sub(r"{\w+}", "some-id", path)
        for method in operations:
            tried += 1
            assert nobody.request(method, url).status_code == 401, (method, path)
            if method != "get":
                assert reader.request(method, url).status_code == 403, (method, path)
    assert tried >= 16
    revoked = api.client("admin")
    api.context.tokens.revoke("admin")
    assert revoked.delete("/v1/jobs/some-id").status_code == 401


def test_guessing_from_one_address_locks_out_no_other_caller_there(api: Api) -> None:
    guesser = api.client(None)
    guesser.headers["Authorization"] = "Bearer gg_00000000_guess"
    while guesser.get("/v1/jobs").status_code != 429:
        pass
    assert api.client("read").get("/v1/jobs").status_code == 200


def test_a_name_is_no_path_and_no_shell(api: Api) -> None:
    client = api.client("submit")
    for name in ("../x", "a/b", ".service", "a\\b", "-rf", "$(reboot)", "x\ny", "é", "a" * 200, ""):
        answer = client.post("/v1/jobs", json={"spec": {**SPEC, "name": name}})
        assert answer.status_code == 422, name
        assert "name" in problem(answer)


def test_an_id_is_no_path(api: Api) -> None:
    outside = log_path(api.root, "x").parents[2] / "passwd.log"
    outside.write_text("root:x:0")
    client = api.client("read")
    for ident in ("..%2F..%2Fetc%2Fpasswd", "%2e%2e", "a%00b", "a%0Ab", "x" * 500):
        for what in ("", "/logs", "/report", "/checkpoints", "/metrics", "/incidents"):
            answer = client.get(f"/v1/jobs/{ident}{what}")
            assert answer.status_code in (404, 422), (ident, what)
            assert "root:x" not in answer.text


def test_aliases_that_expand_without_end_are_refused_where_yaml_is_read(api: Api) -> None:
    job, client = api.submitted(), api.client()
    for value in (BOMB + "}", "&a [*a]"):
        answer = client.post(f"/v1/jobs/{job}/clone", json={"set": [f"options={value}"]})
        assert answer.status_code == 422, answer.text[:500]
    folder = Path(api.context.store.get(job).folder or "")
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"action": "applied", "step": 1, "attempt": 1}\n')
    (folder / "spec.yaml").write_text("name: x\noptions: " + BOMB + "}\n")  # what a job left there
    assert client.get(f"/v1/jobs/{job}").json()["progress"]["step"] == 1
    assert client.get(f"/v1/jobs/{job}/checkpoints").json() == []
    assert client.get(f"/v1/jobs/{job}/report").status_code == 200


@pytest.mark.parametrize(
    "body", ["[" * 200_000, '{"spec":' * 50_000, '{"spec": {"seed": ' + "9" * 100_000 + "}}"]
)
def test_json_that_is_nested_or_long_without_end_is_a_bad_request(api: Api, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    assert api.client("submit").post("/v1/jobs", content=body, headers=headers).status_code in (400, 422)


class Listener(http.server.BaseHTTPRequestHandler):
    """An internal host, which only the service reaches."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture
def inside() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_spec_cannot_send_the_service_to_other_hosts_or_folders(
    api: Api, inside: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    job, client = api.submitted(), api.client("read")
    folder = Path(api.context.store.get(job).folder or "")
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"action": "applied", "step": 1, "attempt": 1}\n')
    endpoint = f"127.0.0.1:{inside.server_port}"
    for url in (
        f"http://{endpoint}/latest/meta-data",
        f"s3://key:hunter2hunter2@bucket/x?endpoint_override={endpoint}&scheme=http",
        f"file://{tmp_path}",
    ):
        spec = JobSpec.from_dict({**SPEC, "name": job, "train": {"checkpoint_storage": url}})
        (folder / "spec.yaml").write_text(spec.to_yaml())
        answer = client.get(f"/v1/jobs/{job}/checkpoints")
        assert answer.status_code == 404
        assert "--checkpoint-url" in problem(answer)
        assert "hunter2" not in answer.text
        assert client.get(f"/v1/jobs/{job}/report").status_code == 200
    assert inside.asked == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("s3://team/jobs/a/checkpoints", True),
        ("s3://team/jobs-of-others/a", False),
        ("s3://team/jobs/../secrets/a", False),
        ("s3://team/jobs/a?endpoint_override=evil", False),
        ("s3://user@team/jobs/a", False),
        ("s3://own/a?endpoint_override=minio:9000", True),
    ],
)
def test_only_below_the_allowed_urls_checkpoints_are_read(url: str, may: bool) -> None:
    assert may_read(("s3://team/jobs/", "s3://own?endpoint_override=minio:9000"), url) is may


class ShortDeadlines(DeadlineProtocol):
    """Without the patience."""

    head_s, stall_s = 0.3, 0.3


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Api, int]]:
    api = Api(tmp_path, auth=False, limits=Limits(body_pause_s=0.3, follow_s=DEADLINE_S))
    config = server_config(api.app, "127.0.0.1", 0, (None, None))
    config.http = ShortDeadlines
    server, listening = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield api, listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    api.engine.dispose()


def all_that_comes(client: socket.socket) -> bytes:
    """Until the server ends the connection."""
    client.settimeout(DEADLINE_S)
    found = b""
    while True:
        try:
            piece = client.recv(1 << 16)
        except ConnectionResetError:
            return found
        if not piece:
            return found
        found += piece


def connected(port: int, text: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(text.encode())
    return client


def test_who_sends_slowly_or_without_end_is_not_waited_for(served: tuple[Api, int]) -> None:
    _, port = served
    head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with (
        connected(port, "") as silent,
        connected(port, head) as half,
        connected(port, "GET /healthz") as word,
    ):
        assert [all_that_comes(client) for client in (silent, half, word)] == [b"", b"", b""]
    with connected(port, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he") as second:
        assert all_that_comes(second).startswith(b"HTTP/1.1 200 ")
    with connected(port, f"{head}Content-Length: 10\r\n\r\n{{") as body:
        answer = all_that_comes(body)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] == "the request did not arrive in time"
    with connected(port, f"GET /healthz HTTP/1.1\r\nX: {'y' * 2 * LARGEST_HEAD}") as large:
        assert all_that_comes(large).startswith((b"HTTP/1.1 4", b""))
    with connected(port, f"{head}Content-Length: 99999999\r\n\r\n") as declared:
        assert all_that_comes(declared).startswith(b"HTTP/1.1 413 ")


def held(client: int) -> bool:
    """Whether the server, in this very process, has a connection to this port of a client."""
    return client in (c.raddr.port for c in psutil.Process().net_connections() if c.raddr)


def test_who_stops_reading_is_cut_off_and_who_reads_is_not(served: tuple[Api, int]) -> None:
    api, port = served
    job = api.submitted()
    path = log_path(api.root, job)
    path.parent.mkdir(parents=True)
    size = 30_000_000
    path.write_bytes(b"x" * size)
    ask = f"GET /v1/jobs/{job}/logs?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(port, ask) as stalled:
        mine = stalled.getsockname()[1]
        until(lambda: held(mine))
        until(lambda: not held(mine))
        assert len(all_that_comes(stalled)) < size
    api.client().post(f"/v1/jobs/{job}/stop")
    with httpx.stream("GET", f"http://localhost:{port}/v1/jobs/{job}/logs?follow=true") as answer:
        assert sum(map(len, answer.iter_bytes())) == size


def test_a_changing_text_of_wrong_tokens_escapes_no_rate_limit(tmp_path: Path) -> None:
    api = Api(tmp_path, limits=Limits(requests_per_s=0.001, burst=30, wrong_tokens_per_minute=10**6))
    reader, guesser = api.client("read"), api.client(None)
    assert reader.get("/v1/jobs").status_code == 200
    codes = [
        guesser.get("/v1/jobs", headers={"Authorization": f"Bearer gg_{i:08x}_guess"}).status_code
        for i in range(40)
    ]
    assert codes == [401] * 29 + [429] * 11
    assert reader.get("/v1/jobs").status_code == 200, "a known token has a limit of its own"
    codes = [reader.get("/v1/jobs").status_code for _ in range(40)]
    assert codes == [200] * 28 + [429] * 12


def revoke_once_used(api: Api, name: str) -> None:
    tokens = api.context.tokens
    until(lambda: any(token.name == name and token.last_used for token in tokens.all()), DEADLINE_S)
    tokens.revoke(name)


@pytest.mark.parametrize("what", ["logs?follow=true", "events?follow=true", "live"])
def test_a_stream_ends_within_seconds_when_its_token_is_revoked(tmp_path: Path, what: str) -> None:
    api = Api(tmp_path, limits=Limits(follow_s=600))
    job, client = api.submitted(), api.client("read")
    path = log_path(api.root, job)
    path.parent.mkdir(parents=True)
    path.write_text("a line\n")
    threading.Thread(target=revoke_once_used, args=(api, "read"), daemon=True).start()
    began = time.monotonic()
    answer = client.get(f"/v1/jobs/{job}/{what}")
    assert answer.status_code == 200
    assert time.monotonic() - began < 60
    assert client.get(f"/v1/jobs/{job}").status_code == 401


def test_a_locked_database_holds_up_no_health_check(served: tuple[Api, int]) -> None:
    api, port = served
    body = json.dumps({"spec": SPEC})
    head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close"
    submission = f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with api.engine.connect() as locking:
        locking.exec_driver_sql("BEGIN IMMEDIATE")
        waiting = [connected(port, submission) for _ in range(45)]  # more than there are threads
        began = time.monotonic()
        for path, statuses in (("/healthz", ("200",)), ("/healthz", ("200",)), ("/readyz", ("200", "503"))):
            ask = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            with connected(port, ask) as client:
                assert all_that_comes(client).split()[1].decode() in statuses
        assert time.monotonic() - began < 25, "a request waits 30 s for the database"
        locking.rollback()
    answers = {all_that_comes(client).split()[1] for client in waiting}
    for client in waiting:
        client.close()
    assert answers <= {b"201", b"503"}


def test_a_token_is_checked_while_the_database_is_locked(api: Api) -> None:
    client = api.client("read")
    with api.engine.connect() as locking:
        locking.exec_driver_sql("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert client.get("/v1/jobs").status_code == 200
        assert time.monotonic() - began < 25, "the database waits for 30 s"
        locking.rollback()
    assert client.get("/v1/jobs").status_code == 200
    assert {row.name: row.last_used for row in api.context.tokens.all()}["read"] is not None
