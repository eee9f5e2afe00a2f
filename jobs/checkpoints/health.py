"""When a checkpoint is good: a state is trusted only after clean steps that followed it.

    saved --> candidate --N clean steps--> good
                  |
                  +--an anomalous step, or a rollback--> deleted

An explosion shows one or two steps after the update that caused it, so a state saved right before it may
contain the cause.
"""

from __future__ import annotations


class Candidates:
    """The checkpoints of this run that are not good yet.

    Args:
        needed: clean steps that must follow.
    """

    def __init__(self, needed: int) -> None:
        self._needed = needed
        self._clean: dict[int, int] = {}
        self._streak = needed

    @property
    def is_trusted(self) -> bool:
        """Whether the present state is trusted: at least ``needed`` clean steps led to it.

        A state that was just loaded or rolled back to is trusted too: it was good.
        """
        return self._streak >= self._needed

    def saved(self, step: int) -> None:
        """A checkpoint of this step is being written."""
        self._clean[step] = 0

    def clean_step(self) -> list[int]:
        """A clean step passed. Returns the steps whose checkpoints are good from now on."""
        self._streak += 1
        self._clean = {step: clean + 1 for step, clean in self._clean.items()}
        proven = [step for step, clean in self._clean.items() if clean >= self._needed]
        for step in proven:
            del self._clean[step]
        return proven

    def mark_suspect(self) -> list[int]:
        """A step was anomalous. Returns the steps whose checkpoints must be deleted."""
        self._streak = 0
        return self._take_all()

    def reset(self) -> None:
        """The run returned to a state that is known to be good."""
        self._streak = self._needed
        self._clean.clear()

    def flush(self) -> list[int]:
        """The run ends normally. Returns the steps whose checkpoints are good although no step follows."""
        remaining = self._take_all()
        return remaining if self.is_trusted else []

    def _take_all(self) -> list[int]:
        steps = list(self._clean)
        self._clean.clear()
        return steps
