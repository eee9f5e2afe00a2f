"""What is told of a job."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jobs.spec.notify import NoticeKind, NotifySpec

FINAL = frozenset({"halted", "failed", "ended"})


@dataclass(frozen=True, slots=True)
class Notice:
    """One sentence on a job."""

    job: str
    event: NoticeKind
    sentence: str
    step: int = 0
    link: str = ""

    @property
    def title(self) -> str:
        return f"{self.job}: {self.event.replace('_', ' ')}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def worded_for(self, receiver: NotifySpec, dropped: int) -> Notice:
        """With the receiver's text and link, and how many notices it did not get since the last one."""
        text = receiver.text.format(
            job=self.job, event=self.event.replace("_", " "), step=self.step, sentence=self.sentence
        )
        more = f" ({dropped} more notices since the last one were not sent)" if dropped else ""
        link = receiver.link.format(job=self.job) or self.link
        return Notice(self.job, self.event, f"{text}{more}", self.step, link)


def of_status(status: str) -> NoticeKind:
    """The notice of how a job ended, by the status of its result."""
    return {"failed": "failed", "halted": "halted"}.get(status, "ended")  # type: ignore[return-value]
