"""Who may do what: a token in the header, of a scope that is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.context import Service
from service.api.problems import Problem
from service.store import Caller, Scope

ANYBODY = Caller("local", "admin")
"""Who reaches a service that asks for no token."""

_bearer = HTTPBearer(auto_error=False, description="A token made by `gradguard tokens create`.")


def needs(scope: Scope) -> Callable[..., Caller]:
    """A dependency: the caller, who has at least this scope."""

    def check(
        request: Request,
        service: Service,
        given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> Caller:
        if not service.auth:
            return ANYBODY
        challenge = {"WWW-Authenticate": "Bearer"}
        if given is None:
            advice = "a token is needed: set GRADGUARD_TOKEN to one that `gradguard tokens create` made"
            raise Problem(401, advice, headers=challenge)
        caller = service.tokens.check(given.credentials)
        who = request.client.host if request.client else "?"
        if caller is None and not request.app.state.wrong_tokens.take(who):
            raise Problem(429, "too many wrong tokens; try again later", headers={"Retry-After": "60"})
        if caller is None:
            raise Problem(401, "the token is wrong, expired or revoked", headers=challenge)
        if not caller.may(scope):
            raise Problem(403, f"this needs the scope {scope}; the token {caller.name} has {caller.scope}")
        return caller

    return check


Reader = Annotated[Caller, Depends(needs("read"))]
Submitter = Annotated[Caller, Depends(needs("submit"))]
Admin = Annotated[Caller, Depends(needs("admin"))]
