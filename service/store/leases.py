"""Leases: of several services on one database, one supervises at a time."""

import os
import secrets
import socket
import time
from collections.abc import Callable

from sqlalchemy import Engine, insert, or_, update
from sqlalchemy.exc import IntegrityError

from service.store.models import LeaseRow


class Lease:
    """One named lease of one holder.

    It only saves work. Two holders at a time (a clock that jumps, a process that was frozen) do no harm:
    every change of a job is a compare-and-swap, and a submission's id is fixed before it goes to Ray.
    """

    def __init__(
        self, engine: Engine, name: str, *, ttl_s: float = 10.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine, self._name, self._ttl_s, self._clock = engine, name, ttl_s, clock
        self.owner = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"

    def hold(self) -> bool:
        """Takes or renews it; false while another holds it."""
        now = self._clock()
        mine = {"owner": self.owner, "until": now + self._ttl_s}
        free = or_(
            LeaseRow.owner == self.owner,
            LeaseRow.until < now,
            LeaseRow.until > now + 2 * self._ttl_s,  # the clock was set back: no lease is that long
        )
        taking = update(LeaseRow).where(LeaseRow.name == self._name, free).values(**mine)
        with self._engine.begin() as connection:
            if connection.execute(taking).rowcount:
                return True
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(LeaseRow).values(name=self._name, **mine))
        except IntegrityError:
            return False
        return True

    def release(self) -> None:
        """Frees it for another holder at once."""
        mine = (LeaseRow.name == self._name, LeaseRow.owner == self.owner)
        with self._engine.begin() as connection:
            connection.execute(update(LeaseRow).where(*mine).values(until=0.0))
