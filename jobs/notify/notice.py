"""What a notice of a job says."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from guard.rows import as_float, as_int
from jobs.report.formats import as_mapping
from jobs.run_dir.reader import RunReader
from jobs.spec.notify import FIELDS, NoticeKind, NotifySpec

FINAL = frozenset({"halted", "failed", "ended"})


@dataclass(frozen=True, slots=True)
class Notice:
    """One sentence on a job, and its figures for a text of the receiver's own.

    Attributes:
        reason: why it was rolled back, or the error that it ended with.
        rollbacks: so far.
        skips: so far.
        metrics: the last evaluation, as ``test_accuracy 0.875, test_loss 0.41``.
        files: of the job, from which its chart is drawn.
        picture: the chart, a PNG; empty for none.
    """

    job: str
    event: NoticeKind
    sentence: str
    step: int = 0
    link: str = ""
    reason: str = ""
    rollbacks: int = 0
    skips: int = 0
    metrics: str = ""
    files: RunReader | None = None
    picture: bytes = field(default=b"", repr=False)

    @property
    def title(self) -> str:
        return f"{self.job}: {self.event.replace('_', ' ')}"

    def to_dict(self) -> dict[str, Any]:
        """As a webhook gets it; ``picture`` is in Base64, and absent where there is none."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        return fields | ({"picture": b64encode(self.picture).decode()} if self.picture else {})

    def worded_for(self, receiver: NotifySpec, dropped: int) -> Notice:
        """With the receiver's text and link, and how many notices it did not get since the last one."""
        link = receiver.link.format(job=self.job) or self.link
        fields = {**self.to_dict(), "event": self.event.replace("_", " "), "link": link}
        text = receiver.text_for(self.event).format_map(fields)
        more = f" ({dropped} more notices since the last one were not sent)" if dropped else ""
        return replace(self, sentence=f"{text}{more}", link=link)

    def with_figures(self, result: Mapping[str, Any]) -> Self:
        """With those of a result, as result.json has them."""
        metrics = {name: as_float(value) for name, value in as_mapping(result.get("metrics")).items()}
        return replace(
            self,
            reason=str(result.get("error") or ""),
            rollbacks=as_int(result.get("rollbacks")) or 0,
            skips=as_int(result.get("skips")) or 0,
            metrics=", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None),
        )


def of_status(status: str) -> NoticeKind:
    """The notice of how a job ended, by the status of its result."""
    return {"failed": "failed", "halted": "halted"}.get(status, "ended")  # type: ignore[return-value]
