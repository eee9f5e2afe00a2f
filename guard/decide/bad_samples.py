"""Which samples made a batch bad: found by computing it again without some of them, at an incident only.

That finds the worst samples however the loss weighs them (by length, by tokens, against each other), with
the batch statistics of training: one bad sample of 64 in 18 passes, or in 10 where it is not finite
(``guard.observe.culprits``). The part of the excess over the baseline that goes with a sample is its share.
The measure is what the verdict is of: the loss, the norm of this rank's gradient, or how far the forward
moves the buffers.
"""

from __future__ import annotations

import inspect
import logging
import math
import operator
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
from guard.agree.sample_rows import UNKNOWN, FoundSample, baseline, excess, has_found, ranked, sample_row
from guard.decide.recompute import WORTH_RECOMPUTING, BatchReplayer
from guard.errors import GuardError
from guard.observe import culprits
from guard.observe.norms import square_norms
from guard.observe.observer import Observer
from guard.records import SampleEvidence, Verdict
from guard.types import Floats

log = logging.getLogger("guard")

SampleClosure = Callable[..., Tensor | None]
"""Computes the batch; with a list of ids as its argument, those samples alone."""
Samples = Sequence[int] | Any
"""Ids: a list, an array or a tensor."""
DECISIVE = 0.5
"""Samples with this share of the excess are excluded, where that is asked for."""
_SIGNALS = ("loss", "grad_norm", "buffers")
_MISSES = 3
"""After as many searches in a row that found nothing, none follows until a step is normal."""
_CONTENT = 200
_SAME_LOSS = 1e-3
"""Relative: kernels on a GPU may add in another order."""


class Measured(NamedTuple):
    """What some samples gave: loss, gradient norm and movement of the buffers; NaN where it was not taken."""

    loss: float
    norm: float = UNKNOWN
    jump: float = UNKNOWN

    def of(self, signal: str) -> float:
        """The measure of a verdict."""
        return {"grad_norm": self.norm, "buffers": self.jump}.get(signal, self.loss)


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
        self._failure: Exception | None = None
        self._launched: tuple[SampleClosure | None, Samples | None, dict[str, Any] | None] | None = None
        self._expected: float | None = None

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
        try:
            self._ids()
        except TypeError:
            raise GuardError(
                f"samples is {samples!r}: pass the ids of this rank's samples, integers"
            ) from None
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
        judged = verdict.kind in WORTH_RECOMPUTING and verdict.signal in _SIGNALS
        able = self._samples is not None and self._observer.shards is None and self._misses < _MISSES
        if hardware or not judged or not able or moved_far():
            return []
        wholes, rows = self._searched(verdict)
        self._sizes = rows[:, 0].tolist()
        found = [self._described(sample) for sample in ranked(rows, wholes, verdict)]
        self._misses = 0 if found else self._misses + 1
        if not found and self._agreement.rank == 0:
            log.info("%s: none of the batch's samples explains it", verdict.signal)
        return found

    def launched(self) -> None:
        """The batch is decided on the device: ``find_late`` may be called once that is known."""
        self._launched = self._closure, self._samples, self._replayer.generators

    def find_late(
        self, verdict: Verdict, loss: float, *, moved_far: Callable[[], bool]
    ) -> list[SampleEvidence]:
        """The same for the last batch that was launched, after the backward of the next one.

        Collective, as ``find``. A closure that reads variables of the loop computes the next batch by now:
        its loss shows that, and its samples are not the cause.

        Args:
            loss: of this rank's samples, as it was.
        """
        if self._launched is None:
            return []
        present = self._closure, self._samples
        (self._closure, self._samples, generators), self._launched = self._launched, None
        try:
            with self._replayer.aside():
                self._replayer.resume(generators)
                self._expected = loss
                return self.find(verdict, 0, hardware=False, moved_far=moved_far)
        finally:
            self._closure, self._samples = present
            self._expected = None

    def _searched(self, verdict: Verdict) -> tuple[Floats, Floats]:
        """The measure of all samples of each rank, and the row of each."""
        self._failure = None
        with untouched(self._model, self._observer.parameters):
            self._replayer.reset()
            self._generators = rng.capture(rng.devices_of(self._model))
            wholes = self._agreement.exchange([self._tried(None, verdict.signal).of(verdict.signal)])[:, 0]
            rows = self._agreement.exchange(self._local_row(verdict, wholes))
        if self._failure is not None and not has_found(rows[self._agreement.rank]):
            log.warning("the bad samples were not found: %s: %s", type(self._failure).__name__, self._failure)
        return wholes, rows

    def excluded(self, bad: Sequence[SampleEvidence]) -> list[Sequence[SampleEvidence]]:
        """Those without which the batch is probably fine, fewest first: all that are not finite, else the
        worst that together are decisive."""
        if nonfinite := [sample for sample in bad if sample.nonfinite]:
            return [nonfinite]
        shares = np.cumsum([sample.share or 0.0 for sample in bad])
        return [bad[: count + 1] for count in np.flatnonzero(shares >= DECISIVE).tolist()]

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
        return [] if self._samples is None else [operator.index(sample) for sample in self._samples]

    def _local_row(self, verdict: Verdict, wholes: Floats) -> list[float]:
        """The bad samples of this rank. Where they cannot be computed, they are not the cause.

        Args:
            wholes: as of ``_searched``.
        """
        if self._failure is not None or not (ids := self._ids()):
            return sample_row(0, False, [])
        members, whole = list(dict.fromkeys(ids)), float(wholes[self._agreement.rank])
        value, usual = partial(self._value, ids, verdict.signal), baseline(verdict)
        healthy, fallen = math.isfinite(whole), dict[int, float]()
        if not healthy:
            bad, healthy = culprits.not_finite(members, lambda some: math.isfinite(value(some)))
            fallen = dict.fromkeys(bad, UNKNOWN)
        elif 0.0 < culprits.RELEVANT * excess(wholes, verdict) <= whole - usual:
            fallen = culprits.explain(members, value, whole, usual)
        alone = {sample: self._tried([sample], verdict.signal) for sample in fallen}
        found = [FoundSample(i, m.loss, m.norm, fallen[i]) for i, m in alone.items()]
        return sample_row(len(members), healthy, found)

    def _value(self, ids: list[int], signal: str, some: Sequence[int]) -> float:
        chosen = set(some)
        return self._tried([i for i in ids if i in chosen], signal).of(signal)

    def _tried(self, ids: list[int] | None, signal: str) -> Measured:
        """Some samples, which may be too few for the loop's code; or all."""
        try:
            chosen = self._ids() if ids is None else ids
            found = self._measure(chosen, signal) if chosen else Measured(UNKNOWN)
            if ids is None and self._expected is not None and chosen:
                _check_batch(found.loss, self._expected)
            return found
        except Exception as error:  # noqa: BLE001 - whatever the loop's own code raises: the other ranks wait
            self._failure = self._failure or error
            return Measured(UNKNOWN)
        finally:
            self._sum = None

    def _measure(self, ids: list[int], signal: str) -> Measured:
        """What these samples give, with the random numbers and buffers of the batch."""
        rng.restore(self._generators)
        if self._shield is not None:
            self._shield.revert()  # each forward on bad data ruins BatchNorm's statistics
        of_gradient, of_buffers = signal == "grad_norm", signal == "buffers"
        parameters = [p for p in self._observer.parameters if p.requires_grad] if of_gradient else []
        found = self._sum = _Sum(parameters)
        fixed = len(ids) == 1 and not of_buffers
        with fixed_statistics(self._model) if fixed else nullcontext():
            loss = self._closure(ids) if self._closure is not None else None
        if loss is not None and not found.losses:
            found.add(loss, 1.0)
        if not found.losses or any(p.grad is not None for p in self._observer.parameters):
            raise GuardError("closure(ids) must return the loss of these samples, or call guard.backward")
        jump = self._shield.jump() if of_buffers and self._shield is not None else None
        return found.measured()._replace(jump=UNKNOWN if jump is None else float(jump))

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


def _check_batch(loss: float, expected: float) -> None:
    """Raises GuardError where a closure computes another batch than the one that it was given for."""
    finite = math.isfinite(loss), math.isfinite(expected)
    if not (math.isclose(loss, expected, rel_tol=_SAME_LOSS) or not any(finite)):
        raise GuardError(
            f"the closure gives a loss of {loss:.4g} one step later, not {expected:.4g}: bind what it reads "
            "of the loop, def closure(ids=ids, batch=batch)"
        )


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
