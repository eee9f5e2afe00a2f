"""When a checkpoint is good: a state is trusted only after clean steps that followed it.

    saved --> candidate --N clean steps--> good
                  |
                  +--a step that was not clean, or a rollback--> deleted

An explosion shows one or two steps after the update that caused it, so what was saved right before it may
hold the cause.
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
    def calm(self) -> bool:
        """Whether the present state is trusted: as many clean steps lie behind it as must follow others.

        A state that was just loaded or returned to is trusted, too: it was good.
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

    def doubt(self) -> list[int]:
        """A step was not clean. Returns the steps whose checkpoints are to be deleted."""
        self._streak = 0
        suspect = list(self._clean)
        self._clean.clear()
        return suspect

    def returned(self) -> None:
        """The run returned to a state that is known to be good."""
        self._streak = self._needed
        self._clean.clear()

    def settle(self) -> list[int]:
        """The run ends in order. Returns what counts as good although no step will follow any more."""
        settled = list(self._clean) if self.calm else []
        self._clean.clear()
        return settled
