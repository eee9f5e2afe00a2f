"""The wording of Ray's errors, where their type does not distinguish causes."""

from __future__ import annotations

import re

_MEMORY = re.compile(r"out ?of ?memory|memory monitor|low on memory", re.IGNORECASE)
_UNANSWERED = re.compile(
    r"health check.*(hang|hung|timeout|timed out|taking too long)", re.IGNORECASE | re.DOTALL
)


def is_out_of_memory(text: str) -> bool:
    """Whether a process was killed because its node ran out of memory."""
    return _MEMORY.search(text) is not None


def is_health_check_timeout(text: str) -> bool:
    """Whether a worker did not answer Ray Train's health check in time."""
    return _UNANSWERED.search(text) is not None


def is_slow_start(text: str) -> bool:
    """Whether a head did not start in time."""
    return re.search(r"timed? ?out|deadline exceeded", text, re.IGNORECASE) is not None


def is_agent_missing(text: str) -> bool:
    """Whether a submission failed because a head that has just started has no agent yet to run jobs."""
    return "No available agent" in text
