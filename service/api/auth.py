"""Authorization: a token in the header, with a sufficient scope."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.context import Service
from service.api.problems import Problem
from service.store import Caller, Scope

LOCAL_ADMIN = Caller("local", "admin")
"""Every caller of a service without tokens."""

_bearer = HTTPBearer(auto_error=False, description="A token made by `gradguard tokens create`.")


def require_scope(scope: Scope) -> Callable[..., Caller]:
    """A dependency of a route: the caller, who has at least this scope."""

    def check(
        request: Request,
        service: Service,
        given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> Caller:
        if not service.auth:
            return LOCAL_ADMIN
        challenge = {"WWW-Authenticate": "Bearer"}
        if given is None:
            advice = "a token is required: set GRADGUARD_TOKEN to one from `gradguard tokens create`"
            raise Problem(401, advice, headers=challenge)
        caller = service.tokens.check(given.credentials)
        who = request.client.host if request.client else "?"
        if caller is None and not request.app.state.wrong_tokens.take(who):
            raise Problem(429, "too many invalid tokens; try again later", headers={"Retry-After": "60"})
        if caller is None:
            raise Problem(401, "the token is invalid, expired or revoked", headers=challenge)
        if not caller.may(scope):
            raise Problem(403, f"this requires scope {scope}; the token {caller.name} has {caller.scope}")
        return caller

    return check


Reader = Annotated[Caller, Depends(require_scope("read"))]
Submitter = Annotated[Caller, Depends(require_scope("submit"))]
Admin = Annotated[Caller, Depends(require_scope("admin"))]
