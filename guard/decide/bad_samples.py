"""Which samples made a batch bad: found by computing it again without them, at an incident only.

Each half of a rank's samples is excluded in turn, then each half of the half that matters: O(log n) passes.
That finds the worst sample however the loss weighs samples (by length, by tokens), and with the batch
statistics of training. The last ``_SINGLES`` or fewer are computed alone too. For the worst few the batch is
computed without each: the part of the excess over the baseline that goes with a sample is its share. The
measure is the loss where the verdict is of the loss, else the norm of this rank's gradient.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from guard.act import rng
from guard.act.buffers import BufferShield
from guard.act.untouched import fixed_statistics, untouched
from guard.agree.agreement import Agreement
from guard.decide.recompute import WORTH_RECOMPUTING, BatchReplayer
from guard.errors import GuardError
from guard.observe.norms import square_norms
from guard.observe.observer import Observer
from guard.records import SampleEvidence, Verdict
from guard.types import Floats

log = logging.getLogger("guard")

SampleClosure = Callable[..., Tensor | None]
"""Computes the batch; with a list of ids as its argument, those samples alone."""
Samples = Sequence[int] | Any
"""Ids: a list, an array or a tensor."""
TOP_SAMPLES = 8
DECISIVE = 0.5
"""A sample with this share of the excess is excluded, where that is asked for."""
_RELEVANT = 0.1
"""A smaller share is not of this sample."""
_SINGLES = 64
_MISSES = 3
"""After as many searches in a row that found nothing, none follows until a step is normal."""
_CONTENT = 200
_COLUMNS = 5
_HEAD = 4


class Measured(NamedTuple):
    """Loss and gradient norm of some samples; the norm is NaN where it was not taken."""

    loss: float
    norm: float

    def of(self, signal: str) -> float:
        """The measure of a verdict."""
        return self.norm if signal == "grad_norm" else self.loss

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and not math.isinf(self.norm)


class SampleSearch:
    """Finds the bad samples of an attempt, if the loop has named its samples.

    Args:
        data: its ``describe(id)``, if there is one, says what a sample is.
    """

    def __init__(
        self,
        model: nn.Module,
        observer: Observer,
        agreement: Agreement,
        replayer: BatchReplayer,
        shield: BufferShield | None,
        data: Any,
    ) -> None:
        self._model, self._observer, self._agreement = model, observer, agreement
        self._replayer, self._shield, self._data = replayer, shield, data
        self._closure: SampleClosure | None = None
        self._samples: Samples | None = None
        self._run: Callable[[SampleClosure], None] | None = None
        self._sum: _Sum | None = None
        self._generators: dict[str, Any] = {}
        self._sizes: list[float] = []
        self._misses = 0
        self._checked = False

    @property
    def running(self) -> bool:
        """Whether losses are the search's at the moment, not the step's."""
        return self._sum is not None

    def begin(
        self, closure: SampleClosure | None, samples: Samples | None, run: Callable[[SampleClosure], None]
    ) -> None:
        """The batch of an attempt; ``run`` computes a closure as that of the step.

        Raises:
            GuardError: there are samples, and the closure takes none.
        """
        self._closure, self._samples, self._run = closure, samples, run
        if samples is None or self._checked:
            return
        self._checked = True
        if isinstance(samples, str):
            raise GuardError(f"samples is {samples!r}: pass the ids of this rank's samples, integers")
        if closure is None:
            raise GuardError("step got samples without a closure: pass one that takes a list of ids")
        try:
            inspect.signature(closure).bind([])
        except TypeError:
            raise GuardError(
                "step got samples, and its closure takes no argument: def closure(ids=ids) computes the loss "
                "of these samples"
            ) from None

    def add(self, loss: Tensor, weight: float) -> None:
        """A loss of the samples that are measured now; it does not enter the step."""
        if self._sum is not None:
            self._sum.add(loss, weight)

    def find(
        self, verdict: Verdict, dropped: int, *, hardware: bool, moved_far: Callable[[], bool]
    ) -> list[SampleEvidence]:
        """The samples that explain the verdict, the worst first; empty where none does.

        Collective: every rank calls it on the same verdict.

        Args:
            verdict: of the batch.
            dropped: micro-batches that were not finite, and do not count in the verdict.
            hardware: it was a hardware fault.
            moved_far: whether the weights explain it.
        """
        if verdict.kind == "ok" and dropped:
            verdict = Verdict("nonfinite", "loss", math.inf, verdict.baseline)
        if verdict.kind == "ok":
            self._misses = 0
        judged = verdict.kind in WORTH_RECOMPUTING and verdict.signal in ("loss", "grad_norm")
        able = self._samples is not None and self._observer.shards is None and self._misses < _MISSES
        if hardware or not judged or not able or moved_far():
            return []
        rows = self._agreement.exchange(self._local_row(verdict))
        self._sizes = rows[:, 0].tolist()
        found = [self._described(sample) for sample in ranked(rows, verdict)]
        self._misses = 0 if found else self._misses + 1
        return found

    def excluded(self, bad: Sequence[SampleEvidence]) -> list[SampleEvidence]:
        """Those without which the batch is probably fine: all that are not finite, else the decisive one."""
        return [s for s in bad if s.nonfinite] or [s for s in bad[:1] if (s.share or 0.0) >= DECISIVE]

    def without(self, excluded: Sequence[SampleEvidence]) -> Callable[[], None] | None:
        """Computes this rank's batch without these samples of it; None where a rank would have none left."""
        ranks = [sample.rank for sample in excluded]
        if self._run is None or self._closure is None or not ranks:
            return None
        if any(self._sizes[rank] <= ranks.count(rank) for rank in ranks):
            return None
        own = {sample.sample for sample in excluded if sample.rank == self._agreement.rank}
        left = [sample for sample in self._ids() if sample not in own]
        return partial(self._run, partial(self._closure, left) if own else self._closure)

    def _ids(self) -> list[int]:
        return [] if self._samples is None else [int(sample) for sample in self._samples]

    def _local_row(self, verdict: Verdict) -> list[float]:
        """What this rank knows of its samples: their number, how many are not finite, the measure of all,
        and the worst of them. Where the search fails, they are not the cause."""
        row: list[float] = []
        try:
            ids = self._ids()
            with untouched(self._model, self._observer.parameters):
                self._replayer.reset()
                self._generators = rng.capture(rng.devices_of(self._model))
                row = _Examination(self._measure, verdict).row(ids) if ids else []
        except Exception as error:  # noqa: BLE001 - whatever the loop's own code raises: the other ranks wait
            log.warning("the bad samples were not found: %s: %s", type(error).__name__, error)
        finally:
            self._sum = None
        return row + [math.nan] * (_HEAD + TOP_SAMPLES * _COLUMNS - len(row))

    def _measure(self, ids: list[int], *, gradient: bool) -> Measured:
        """Loss and gradient norm of these samples, with the random numbers and buffers of the batch."""
        rng.restore(self._generators)
        if self._shield is not None:
            self._shield.revert()  # each forward on bad data ruins BatchNorm's statistics
        parameters = [p for p in self._observer.parameters if p.requires_grad] if gradient else []
        found = self._sum = _Sum(parameters)
        with fixed_statistics(self._model) if len(ids) == 1 else nullcontext():
            loss = self._closure(ids) if self._closure is not None else None
        if loss is not None and not found.losses:
            found.add(loss, 1.0)
        if not found.losses or any(p.grad is not None for p in self._observer.parameters):
            raise GuardError("closure(ids) must return the loss of these samples, or call guard.backward")
        return found.measured()

    @property
    def has_closure(self) -> bool:
        return self._closure is not None

    def whole(self) -> float:
        """The loss of all samples of this rank, at the present weights."""
        found = self._sum = _Sum([])
        try:
            loss = self._closure() if self._closure is not None else None
        finally:
            self._sum = None
        if loss is not None and not found.losses:
            found.add(loss, 1.0)
        if not found.losses:
            raise GuardError("the closure returned no loss and called no guard.backward")
        return found.measured().loss

    def _described(self, sample: SampleEvidence) -> SampleEvidence:
        describe = getattr(self._data, "describe", None)
        if describe is None:
            return sample
        try:
            words = " ".join(str(describe(sample.sample)).split())[:_CONTENT]
        except Exception as error:  # noqa: BLE001 - the data set's own code
            log.warning("sample %d has no description: %s", sample.sample, error)
            return sample
        return replace(sample, content="".join(c if c.isprintable() else "?" for c in words))


class _Sum:
    """The loss of one call of the closure, over its micro-batches, and their gradients."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters = parameters
        self._gradients: list[Tensor | None] = [None] * len(parameters)
        self.losses = 0
        self._loss = 0.0

    def add(self, loss: Tensor, weight: float) -> None:
        self.losses += 1
        self._loss += weight * float(loss.detach())
        if not self._parameters:
            return
        # Neither .grad nor DDP's hooks are reached.
        new = torch.autograd.grad(loss * weight, self._parameters, allow_unused=True)
        self._gradients = [_added(old, g) for old, g in zip(self._gradients, new, strict=True)]

    def measured(self) -> Measured:
        dense = [g.coalesce() if g.is_sparse else g for g in self._gradients if g is not None]
        norm = math.sqrt(square_norms(dense).sum()) if dense else math.nan
        if self._parameters and math.isnan(norm):
            norm = math.inf
        return Measured(self._loss, norm)


def _added(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None else old if new is None else old + new


class _Examination:
    """One rank's samples at one verdict. ``measure(ids, gradient=...)`` computes some of them."""

    def __init__(self, measure: Callable[..., Measured], verdict: Verdict) -> None:
        self._measure = partial(measure, gradient=verdict.signal == "grad_norm")
        self._signal, self._baseline = verdict.signal, verdict.baseline or 0.0

    def row(self, ids: list[int]) -> list[float]:
        """See ``SampleSearch._local_row``."""
        whole = self._measure(ids)
        group, last = self._narrowed(ids)
        single = {i: self._measure([i]) for i in group}
        values = [(i, m, self._drop(whole, m, ids, i)) for i, m in self._worst(single, last)]
        values.sort(key=lambda value: (value[1].finite, -value[2]))
        bad = 0 if whole.finite else sum(not m.finite for m in single.values())
        row: list[float] = [len(ids), len(single), bad, whole.of(self._signal)]
        for i, alone, drop in values[:TOP_SAMPLES]:
            nonfinite = not whole.finite and (not alone.finite or drop == math.inf)
            row += [i, alone.loss, alone.norm, drop, nonfinite]
        return list(map(float, row))

    def _narrowed(self, ids: list[int]) -> tuple[list[int], int]:
        """The samples that are computed alone, and the one that is left of them by halving."""
        group, singles = ids, ids
        while len(group) > 1:
            middle = len(group) // 2
            halves = group[:middle], group[middle:]
            group = min(halves, key=lambda half: _order(self._without(ids, half)))
            singles = singles if len(singles) <= _SINGLES else group
        return singles, group[0]

    def _without(self, ids: list[int], some: list[int]) -> float:
        excluded = set(some)
        rest = [i for i in ids if i not in excluded]
        return self._measure(rest).of(self._signal) if rest else self._baseline

    def _worst(self, single: dict[int, Measured], last: int) -> list[tuple[int, Measured]]:
        """Candidates: the worst by the measure and by the loss, and the one that halving has found."""
        by_measure = sorted(single, key=lambda i: _order(single[i].of(self._signal)), reverse=True)
        by_loss = sorted(single, key=lambda i: _order(single[i].loss), reverse=True)
        some = by_measure[:TOP_SAMPLES] if self._signal == "loss" else by_measure[:5] + by_loss[:3]
        return [(i, single[i]) for i in dict.fromkeys([last, *some]) if i in single]

    def _drop(self, whole: Measured, alone: Measured, ids: list[int], sample: int) -> float:
        """By how much the measure falls without the sample; infinite where the sample is not finite."""
        value = whole.of(self._signal)
        if not (whole.finite or alone.finite):
            return math.inf  # it is bad whatever the others are: no pass to show that
        rest = self._without(ids, [sample])
        if math.isfinite(value):
            return value - rest if math.isfinite(rest) else -math.inf
        return math.inf if math.isfinite(rest) else 0.0


def _order(value: float) -> tuple[bool, float]:
    """Sorts what is not finite last."""
    return (True, 0.0) if not math.isfinite(value) else (False, value)


def ranked(rows: Floats, verdict: Verdict) -> list[SampleEvidence]:
    """The samples of all ranks that explain the verdict, the worst first, at most ``TOP_SAMPLES``.

    Args:
        rows: of ``SampleSearch._local_row``, [ranks, columns]; NaN where a rank knows nothing.
    """
    found = [
        (entry, rank)
        for rank, row in enumerate(rows)
        for entry in row[_HEAD:].reshape(-1, _COLUMNS).tolist()
        if not math.isnan(entry[0])
    ]
    known = rows[~np.isnan(rows[:, 0])]
    if bad := [item for item in found if item[0][4]]:
        if 2 * known[:, 2].sum() > known[:, 1].sum():  # not the samples, but the weights
            return []
        bad.sort(key=lambda item: math.isfinite(item[0][1]))
        return [_evidence(entry, rank, None) for entry, rank in bad[:TOP_SAMPLES]]
    excess = float((known[:, 3] - (verdict.baseline or 0.0)).sum())
    if not 0.0 < excess < math.inf:
        return []
    shares = [(entry[3] / excess, entry, rank) for entry, rank in found]
    worst = sorted((item for item in shares if item[0] >= _RELEVANT), key=lambda item: -item[0])
    return [_evidence(entry, rank, share) for share, entry, rank in worst[:TOP_SAMPLES]]


def _evidence(entry: list[float], rank: int, share: float | None) -> SampleEvidence:
    sample, loss, norm, _, nonfinite = entry
    return SampleEvidence(
        int(sample),
        rank,
        loss,
        None if math.isnan(norm) else norm,
        bool(nonfinite),
        None if share is None else min(1.0, share),
    )
