"""Everything the guard raises.

GuardError
├── GuardHalt            the budget is spent; raised on every rank, with the incident
├── RankLost             another rank died, hung or failed; names it and the cause where known
├── RankDivergence       ranks would decide differently; raised on every rank
└── UnsupportedGradient  a gradient the guard cannot measure or clip
"""

from __future__ import annotations

from guard.records import Incident


class GuardError(RuntimeError):
    """Base of all errors of the guard."""


class GuardHalt(GuardError):
    """The rollback budget is spent: training stops on all ranks, the last healthy state is restored."""

    def __init__(self, message: str, incident: Incident) -> None:
        super().__init__(message, incident)
        self.message = message
        self.incident = incident

    def __str__(self) -> str:
        return self.message


class RankLost(GuardError):
    """A collective failed because another rank is gone; names it and the cause, where known."""


class RankDivergence(GuardError):
    """The decision states of the ranks differ, so their weights would too; names the ranks."""


class UnsupportedGradient(GuardError):
    """A gradient that the guard cannot measure or clip; names the parameter and what to do."""
