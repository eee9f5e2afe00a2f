"""The profile of a run, and its GPU, for the report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guard.rows import Row
from jobs.report.formats import count, percent, plural, size_text
from jobs.run_dir.paths import TRACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu(Row):
    """What the first worker used of its GPU: the most memory that torch allocated, mean utilization."""

    name: str = ""
    peak_bytes: int | None = None
    total_bytes: int | None = None
    utilization: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator(Row):
    """One operator of a profile, without what it calls."""

    name: str = ""
    seconds: float | None = None
    share: float | None = None
    calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Row):
    """profile/operators.json."""

    steps: int = 0
    device: str = ""
    operators: list[Operator] = field(default_factory=list)


def profile_table(raw: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Words and rows of the profile: operator, milliseconds a step, share, calls a step."""
    profile = Profile.from_row(raw or {})
    if not profile.steps or not profile.operators:
        return None
    where = "GPU" if profile.device == "cuda" else "CPU"
    words = f"{plural(profile.steps, 'step')} of the first worker, time on the {where}. The trace is {TRACE}"
    rows = [
        (
            operator.name,
            f"{1000 * (operator.seconds or 0.0) / profile.steps:.3g}",
            percent(operator.share),
            count(round((operator.calls or 0) / profile.steps)),
        )
        for operator in profile.operators
    ]
    return {"words": f"{words}: open it at ui.perfetto.dev.", "rows": rows}


def gpu_figure(gpu: Gpu | None) -> list[tuple[str, str, str]]:
    """The key figure of a run on a GPU."""
    if gpu is None or gpu.peak_bytes is None:
        return []
    of = f"of {size_text(gpu.total_bytes)}" if gpu.total_bytes else ""
    busy = f"{percent(gpu.utilization)} busy" if gpu.utilization is not None else ""
    return [("GPU memory", size_text(gpu.peak_bytes), "; ".join(filter(None, (of, busy))))]
