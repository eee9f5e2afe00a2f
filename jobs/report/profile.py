"""The profile of a run, and its GPU, for the report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guard.rows import Row
from jobs.report.formats import count, percent, plural, size_text
from jobs.run_dir.paths import TRACE


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGpu(Row):
    """The same of any worker."""

    peak_bytes: int | None = None
    utilization: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu(Row):
    """What the first worker used of its GPU: the most memory that torch allocated, mean utilization."""

    name: str = ""
    peak_bytes: int | None = None
    total_bytes: int | None = None
    utilization: float | None = None
    ranks: list[RankGpu] = field(default_factory=list)


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
    words = "; ".join(filter(None, (of, busy, *_of_ranks(gpu.ranks))))
    return [("GPU memory", size_text(gpu.peak_bytes), words)]


def _of_ranks(ranks: list[RankGpu]) -> list[str]:
    """Which rank has most, and which computes least."""
    memory = {rank: one.peak_bytes for rank, one in enumerate(ranks) if one.peak_bytes is not None}
    shares = {rank: one.utilization for rank, one in enumerate(ranks) if one.utilization is not None}
    if len(ranks) < 2 or not memory:
        return []
    most = max(memory, key=memory.__getitem__)
    words = [f"most on rank {most}: {size_text(memory[most])}"]
    if shares:
        least = min(shares, key=shares.__getitem__)
        words.append(f"least busy: rank {least}, {percent(shares[least])}")
    return words
