"""Rollbacks: which state is restored, from memory or from disk, and which data follow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from guard.act.cooldown import Cooldown
from guard.act.snapshot import GENERATORS, Snapshot, SnapshotRing, Stateful
from guard.records import Source
from guard.types import RateFinding, StepOutcome

DATA = "data"
"""What the data cursor is called in a snapshot."""

Restore = Callable[[int], int | None]


class NamesOnly:
    """A data cursor that names samples and is never rolled back, where a framework owns the loop's loader."""

    def __init__(self, cursor: Stateful) -> None:
        self._cursor = cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _: dict[str, Any]) -> None:
        pass


class Rollback:
    """Restores healthy states.

    Args:
        ring: the snapshots.
        cooldown: begins where moving on is not enough.
        replay: whether the same data follow.
        before: clears what the present attempt has left.
        after: accepts what was restored, of this step.
        start: accepts what was loaded in place of all snapshots, of this step.
    """

    def __init__(
        self,
        ring: SnapshotRing,
        cooldown: Cooldown,
        *,
        replay: bool,
        before: Callable[[], None],
        after: Callable[[int], None],
        start: Callable[[int], None],
    ) -> None:
        self._ring, self._cooldown, self._replay = ring, cooldown, replay
        self._before, self._after, self._start = before, after, start
        self._restore: Restore | None = None

    def restore_from(self, restore: Restore) -> None:
        """Sets what loads an older state where the last snapshot did not help."""
        self._restore = restore

    def run(
        self,
        step: int,
        *,
        recover: bool = True,
        rate: RateFinding | None = None,
        verified: int | None = None,
    ) -> StepOutcome:
        """Restores the newest healthy snapshot, or a checkpoint if that did not help.

        Args:
            step: optimizer steps before this rollback.
            recover: starts the cooldown too, one level harder where one is running.
            rate: what is wrong with the rate: restores the oldest healthy snapshot, and cuts the rate.
            verified: memory was damaged: restores the newest snapshot of this step at most, with its data.
        """
        intact = None if verified is None else self._ring.newest(verified)
        if intact is not None:
            return self._return_to(intact, step, keep=frozenset())
        if rate is not None and rate.acts and rate.again:
            return self._restart(step, rate)
        started = time.perf_counter()
        source: Source = "memory"
        spent = self._ring.spent()
        target = None if spent is None else self._restore_from_disk(spent.step - 1)
        if target is not None:
            source = "disk"
        else:
            target = self.to_healthy().step
        if recover:
            self._cooldown.begin()
        seconds = time.perf_counter() - started
        return StepOutcome("rolled_back", target, target, max(0, step - target), seconds, source=source)

    def _restart(self, step: int, rate: RateFinding) -> StepOutcome:
        target, replays = self._ring.oldest(), self._replay or rate.replays
        kept = frozenset() if replays else frozenset({DATA, GENERATORS})
        outcome = self._return_to(target, step, keep=kept)
        target.returns = 0
        self._cooldown.rate_factor = rate.factor
        return outcome

    def _return_to(self, target: Snapshot, step: int, *, keep: frozenset[str]) -> StepOutcome:
        """Restores a snapshot that is not at fault, but for the named states in ``keep``."""
        started, returns = time.perf_counter(), target.returns
        self._before()
        self._ring.restore(target, keep=keep)
        target.returns = returns
        self._after(target.step)
        seconds = time.perf_counter() - started
        return StepOutcome("rolled_back", target.step, target.step, step - target.step, seconds)

    def _restore_from_disk(self, before: int) -> int | None:
        """Loads an older state in place of all snapshots; None where there is none.

        All ranks reach it, since ``spent`` is the same on each; ``restore`` may run collectives.
        """
        if self._restore is None or (step := self._restore(before)) is None:
            return None
        self._before()
        self._start(step)
        return step

    def to_healthy(self) -> Snapshot:
        self._before()
        target = self._ring.target()
        if target is None:
            raise RuntimeError("a rollback was decided without a healthy snapshot")
        self._ring.restore(target, keep=frozenset() if self._replay else self._moves_on(target))
        self._after(target.step)
        return target

    def _moves_on(self, target: Snapshot) -> frozenset[str]:
        """What is not restored, so that other batches follow: where a rollback to this snapshot did not help,
        the random numbers too, since many loops draw their batches from them."""
        return frozenset({DATA, GENERATORS} if target.returns else {DATA})
