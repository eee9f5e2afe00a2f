"""The HTTP API in this process, on a store of its own, without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from service.api import Context, Limits
from service.app import make_app
from service.store import SCOPES, JobStore, Packages, Tokens, open_database

SPEC: dict[str, Any] = {"name": "digits", "data": {"dataset": "digits"}, "train": {"max_steps": 10}}


class Api:
    """The app, its store, and a client for each scope."""

    def __init__(self, path: Path, *, auth: bool = True, limits: Limits | None = None) -> None:
        self.root = path / "storage"
        self.root.mkdir()
        self.engine = open_database(f"sqlite:///{path}/service.db")
        tokens = Tokens(self.engine)
        limits = limits or Limits(follow_s=0.1, requests_per_s=1e6, burst=1_000_000)
        self.context = Context(JobStore(self.engine), Packages(self.engine), tokens, self.root, auth, limits)
        self.app = make_app(self.context)
        self.tokens = {scope: tokens.create(scope, scope) for scope in SCOPES} if auth else {}

    def client(self, scope: str | None = "admin") -> TestClient:
        """A client with a token of this scope, or with none."""
        token = self.tokens.get(scope or "")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return TestClient(self.app, headers=headers, raise_server_exceptions=False)

    def submitted(self, **more: Any) -> str:
        """The id of a new job."""
        answer = self.client().post("/v1/jobs", json={"spec": SPEC, **more})
        assert answer.status_code == 201, answer.text
        job_id: str = answer.json()["id"]
        return job_id


def problem(answer: Any) -> str:
    """The text of a problem document."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert answer.json()["status"] == answer.status_code
    detail: str = answer.json()["detail"]
    return detail
