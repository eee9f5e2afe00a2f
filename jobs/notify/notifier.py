"""Sends notices in the background, so many an hour, and counts."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from types import TracebackType
from typing import Self

from jobs.notify.chart import chart
from jobs.notify.notice import FINAL, Notice
from jobs.notify.senders import NotSent, send
from jobs.spec.notify import NotifySpec

logger = logging.getLogger(__name__)

HOUR_S = 3600.0
CLOSING_S = 15.0
"""How long the end of a job waits for its last notices."""


class Notifier:
    """Tells the receivers of a job or a service; a failure is counted and logged, and stops nothing.

    Args:
        receivers: the section ``notify``.
        clock: seconds, for the limit of an hour.

    Attributes:
        counts: notices that were ``sent``, ``failed``, or ``dropped`` because of ``per_hour``.
    """

    def __init__(
        self, receivers: Sequence[NotifySpec], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts = {"sent": 0, "failed": 0, "dropped": 0}
        self._receivers = [_Receiver(spec, clock) for spec in receivers]
        self._queue: queue.Queue[Notice | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="notices", daemon=True)
        if receivers:
            self._thread.start()

    def emit(self, notice: Notice) -> None:
        """Returns at once."""
        if self._receivers:
            self._queue.put(notice)

    def close(self) -> None:
        """Sends what is left, within ``CLOSING_S``."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(CLOSING_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while (notice := self._queue.get()) is not None:
            drawn = cache(partial(chart, notice))
            for receiver in self._receivers:
                if notice.event in receiver.spec.on:
                    self._tell(receiver, notice, drawn)

    def _tell(self, receiver: _Receiver, notice: Notice, drawn: Callable[[], bytes]) -> None:
        if not receiver.may_send(notice):
            self.counts["dropped"] += 1
            return
        if receiver.spec.wants_picture:
            notice = replace(notice, picture=drawn())
        try:
            send(receiver.spec, notice.worded_for(receiver.spec, receiver.take_dropped()))
        except NotSent as error:
            self.counts["failed"] += 1
            logger.warning("no notice that %s %s: %s", notice.job, notice.event, error)
        except Exception:
            self.counts["failed"] += 1
            logger.exception("no notice that %s %s", notice.job, notice.event)
        else:
            self.counts["sent"] += 1


class _Receiver:
    """The limit of one receiver."""

    def __init__(self, spec: NotifySpec, clock: Callable[[], float]) -> None:
        self.spec, self._clock = spec, clock
        self._sent: deque[float] = deque()
        self._dropped = 0

    def may_send(self, notice: Notice) -> bool:
        """Whether the hour has room for it; the last place is kept for how a job ended."""
        now = self._clock()
        while self._sent and now - self._sent[0] >= HOUR_S:
            self._sent.popleft()
        room = self.spec.per_hour - (notice.event not in FINAL)
        if len(self._sent) >= room:
            self._dropped += 1
            return False
        self._sent.append(now)
        return True

    def take_dropped(self) -> int:
        dropped, self._dropped = self._dropped, 0
        return dropped
