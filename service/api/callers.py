"""Who sends a request, as far as its rate is concerned: a valid token, or else an address."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

CALLERS_KEPT = 10_000


class Buckets:
    """One token bucket for each caller: ``burst`` at once, ``per_s`` in the long run."""

    def __init__(self, per_s: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str) -> bool:
        """Takes one if it is allowed."""
        now, most = self._clock(), float(self._burst)
        when, level = self._levels.get(who, (now, most))
        level = min(most, level + (now - when) * self._per_s)
        passed = level >= 1
        self._levels[who] = (now, level - 1 if passed else level)
        self._levels.move_to_end(who)
        while len(self._levels) > CALLERS_KEPT:
            self._levels.popitem(last=False)
        return passed

    def continue_as(self, who: str, now_known_as: str) -> None:
        """A caller gets a name of its own: what it has taken so far counts for that too."""
        if who in self._levels:
            self._levels.setdefault(now_known_as, self._levels[who])


class Callers:
    """Counts requests by the id of a valid token, or else by address: the text of a token can be varied.

    A token is known after its first request, which counts for the address: no request is looked up twice.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._buckets = Buckets(per_s, burst)
        self._known: OrderedDict[str, str] = OrderedDict()

    def take(self, header: str, address: str) -> bool:
        """Whether a request with this Authorization header may pass."""
        known = self._known.get(_digest(header)) if header else None
        return self._buckets.take(f"token {known}" if known else f"address {address}")

    def add(self, header: str, name: str, address: str) -> None:
        """The token in this header was found valid."""
        digest = _digest(header)
        if digest not in self._known:
            self._buckets.continue_as(f"address {address}", f"token {name}")
            self._known[digest] = name
        while len(self._known) > CALLERS_KEPT:
            self._known.popitem(last=False)


def _digest(header: str) -> str:
    return hashlib.sha256(header.encode("utf-8", "replace")).hexdigest()
