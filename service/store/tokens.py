"""Access tokens and their scopes. Only a hash of each is stored."""

import hashlib
import hmac
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Engine, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from jobs.errors import JobError
from service.store.engine import impatient
from service.store.models import AuditRow, TokenRow
from service.store.quota import Quota

Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Each includes those before it."""

PREFIX = "gg"
NAMES = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}$")
TOUCH_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request."""

    name: str
    scope: Scope
    address: str = ""
    max_jobs: int | None = None
    max_gpus: float | None = None

    @property
    def quota(self) -> Quota:
        """What its token allows at a time."""
        return Quota(self.name, self.max_jobs, self.max_gpus)

    def may(self, scope: Scope) -> bool:
        """Whether this caller has at least this scope."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class Tokens:
    """The tokens in a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(
        self,
        name: str,
        scope: Scope,
        *,
        days: float | None = None,
        max_jobs: int | None = None,
        max_gpus: float | None = None,
    ) -> str:
        """Creates a token and returns it; it cannot be read again. ``max_jobs`` and ``max_gpus`` limit its
        jobs that have not ended.

        Raises:
            JobError: the name is taken or invalid.
        """
        if not NAMES.match(name):
            raise JobError(f"{name!r} is not a valid token name: use letters, digits and . _ @ -, at most 63")
        ident, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        now = time.time()
        expires = None if days is None else now + days * 86_400
        known = {"id": ident, "secret_hash": _hash(secret), "max_jobs": max_jobs, "max_gpus": max_gpus}
        try:
            with Session(self._engine) as session, session.begin():
                session.add(TokenRow(**known, name=name, scope=scope, created=now, expires=expires))
                session.add(_noted("create token", name, f"scope {scope}"))
        except IntegrityError:
            raise JobError(f"the token {name} exists already: choose another name") from None
        return f"{PREFIX}_{ident}_{secret}"

    def all(self) -> list[TokenRow]:
        """All tokens ever created, oldest first."""
        with Session(self._engine) as session:
            return list(session.scalars(select(TokenRow).order_by(TokenRow.created)))

    def revoke(self, name: str) -> None:
        """Invalidates a token at once.

        Raises:
            JobError: no valid token has this name.
        """
        good = (TokenRow.name == name, TokenRow.revoked.is_(None))
        with Session(self._engine) as session, session.begin():
            changed = session.scalars(select(TokenRow).where(*good)).first()
            if changed is None:
                raise JobError(f"no valid token is named {name}: `gradguard tokens list` shows all")
            changed.revoked = time.time()
            session.add(_noted("revoke token", name))

    def check(self, token: str) -> Caller | None:
        """The caller with this token; None if it is unknown, revoked or expired."""
        prefix, _, rest = token.partition("_")
        ident, _, secret = rest.partition("_")
        with Session(self._engine) as session:
            row = session.get(TokenRow, ident) if prefix == PREFIX else None
            known = row.secret_hash if row else _hash("")
            same = hmac.compare_digest(known, _hash(secret))
            now = time.time()
            if row is None or not same or row.revoked or (row.expires is not None and row.expires < now):
                return None
            scope: Any = row.scope
            caller = Caller(row.name, scope, max_jobs=row.max_jobs, max_gpus=row.max_gpus)
        if now - (row.last_used or 0) > TOUCH_EVERY_S:
            self._touch(ident, now)
        return caller

    def _touch(self, ident: str, now: float) -> None:
        """Notes when it was last used, unless the database is locked: no request waits for that."""
        with suppress(OperationalError), impatient(self._engine) as connection, connection.begin():
            connection.execute(update(TokenRow).where(TokenRow.id == ident).values(last_used=now))


def _noted(action: str, name: str, detail: str = "") -> AuditRow:
    """Tokens are managed on the machine of the service only."""
    known = {"time": time.time(), "token": "command line", "address": ""}
    return AuditRow(**known, action=action, subject=name, detail=detail)


def _hash(secret: str) -> str:
    """Plain SHA-256 is enough: the secrets are random and 256 bits long."""
    return hashlib.sha256(secret.encode()).hexdigest()
