"""Authorization: a token in the header, with a sufficient scope."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from service.api.context import Service
from service.api.problems import Problem
from service.store import Caller, Scope

LOCAL_ADMIN = Caller("local", "admin")
"""Every caller of a service without tokens."""

RECHECK_S = 2.0

_bearer = HTTPBearer(auto_error=False, description="A token made by `gradguard tokens create`.")


def require_scope(scope: Scope) -> Callable[..., Caller]:
    """A dependency of a route: the caller, who has at least this scope."""

    def check(
        request: Request,
        service: Service,
        given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> Caller:
        who = request.client.host if request.client else "?"
        if not service.auth:
            return replace(LOCAL_ADMIN, address=who)
        challenge = {"WWW-Authenticate": "Bearer"}
        if given is None:
            advice = "a token is required: set GRADGUARD_TOKEN to one from `gradguard tokens create`"
            raise Problem(401, advice, headers=challenge)
        caller = service.tokens.check(given.credentials)
        if caller is None and not request.app.state.wrong_tokens.take(who):
            raise Problem(429, "too many invalid tokens; try again later", headers={"Retry-After": "60"})
        if caller is None:
            raise Problem(401, "the token is invalid, expired or revoked", headers=challenge)
        if not caller.may(scope):
            raise Problem(403, f"this requires scope {scope}; the token {caller.name} has {caller.scope}")
        service.callers.add(request.headers.get("authorization", ""), caller.name, who)
        return replace(caller, address=who)

    return check


class Allowed:
    """Whether the caller of a stream still has a valid token, asked again every ``RECHECK_S``."""

    def __init__(
        self, service: Service, given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
    ) -> None:
        self._service, self._token = service, given.credentials if given else ""
        self._asked = time.monotonic()

    async def __call__(self) -> bool:
        if not self._service.auth or time.monotonic() - self._asked < RECHECK_S:
            return True
        self._asked = time.monotonic()
        try:
            return await run_in_threadpool(self._service.tokens.check, self._token) is not None
        except SQLAlchemyError:
            return False


StillAllowed = Annotated[Allowed, Depends()]


Reader = Annotated[Caller, Depends(require_scope("read"))]
Submitter = Annotated[Caller, Depends(require_scope("submit"))]
Admin = Annotated[Caller, Depends(require_scope("admin"))]
