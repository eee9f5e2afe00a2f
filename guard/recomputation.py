"""Batches computed again: one that looks bad, and now and then one that looks fine."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from guard.clip.base import scale_
from guard.decide.rank_exclusion import without
from guard.decide.recompute import WORTH_RECOMPUTING, Result, faulty_ranks
from guard.decide.repeats import Kept, Repeats, lone_rank
from guard.observe.fsdp2 import fully_sharded
from guard.parts import StepParts
from guard.records import SampleEvidence, Verdict
from guard.types import Agreed, Correction, Floats, Movement, Observation

Again = Callable[[], None]  # the batch's forward and backward
Used = tuple[Agreed, Observation, Correction | None]  # and what was corrected in it

_REPEATED = Verdict("suspect", "grad_norm", 0.0)

log = logging.getLogger("guard")


class Recomputation:
    """What a second computation of a batch shows, and which of its results is used.

    Each of its collectives is reached by all ranks: on a verdict of agreed numbers, or on the number of the
    attempt.

    Args:
        observe: the rows of all ranks and the norms of the present gradients.
        collect: each rank's local norm of this attempt.
        digest: of the state that decides.
    """

    def __init__(
        self,
        parts: StepParts,
        observe: Callable[[], tuple[Agreed, Observation]],
        collect: Callable[[], Floats],
        digest: Callable[[], int],
    ) -> None:
        self._parts, self._observe, self._collect, self._digest = parts, observe, collect, digest
        self._acts = parts.config.acts
        self._repeats = Repeats(parts.replayer.model, parts.observer, parts.config.recompute)

    def due(self, attempt: int) -> bool:
        """Whether the batch of this attempt is computed twice, however it looks. The same on all ranks."""
        return self._acts and self._repeats.due(attempt)

    def run(
        self,
        again: Again,
        agreed: Agreed,
        seen: Observation,
        expected: Verdict,
        moved: Movement | None,
        *,
        attempt: int,
        moved_far: Callable[[], bool],
    ) -> tuple[Agreed, Observation, Correction | None, list[SampleEvidence]]:
        """The result to go on with, what was corrected in it, and the samples that made the batch bad."""
        fault: Correction | None = None
        second: Result | None = None
        if self._acts and self._parts.replayer.ready:
            if expected.kind in WORTH_RECOMPUTING:
                agreed, seen, fault, second = self._recheck(again, agreed, seen, expected, moved)
            elif self._repeats.due(attempt):
                agreed, seen, fault = self._repeat(again, agreed, seen)
        hardware, dropped = fault is not None, agreed.dropped_micro_batches
        bad = self._parts.search.find(expected, dropped, hardware=hardware, moved_far=moved_far)
        if bad and self._acts and fault is None:
            agreed, seen, fault = self._without_samples(again, bad, agreed, seen, expected, moved)
        if second is not None and fault is None:
            agreed, seen, fault = self._without_rank(again, second, agreed, seen, expected, moved, attempt)
        if self._acts:
            self._parts.replayer.arm()
        return agreed, seen, fault, bad

    def _recheck(
        self, again: Again, agreed: Agreed, seen: Observation, expected: Verdict, moved: Movement | None
    ) -> tuple[Agreed, Observation, Correction | None, Result]:
        """Of a batch that looks bad; and its second result."""
        first, norms = Result(agreed, self._collect(), seen.grad_norm), seen.layer_norms
        value = _value(expected.signal, agreed, seen)
        self._parts.replayer.computed()
        agreed, seen, second, comparable = self._computed_again(again)
        ranks = tuple(faulty_ranks(first, second, self._parts.device))
        if ranks and comparable:  # a hardware fault, if the batch gives this result again
            agreed, seen, third, comparable = self._computed_again(again)
            comparable = comparable and not faulty_ranks(second, third, self._parts.device)
            second = third
        if ranks and (comparable or self._parts.decider.foresee(agreed, seen, moved).kind == "ok"):
            return agreed, seen, Correction(ranks if comparable else (), expected, value, norms), second
        return agreed, seen, None, second

    def _without_rank(
        self,
        again: Again,
        second: Result,
        agreed: Agreed,
        seen: Observation,
        expected: Verdict,
        moved: Movement | None,
        attempt: int,
    ) -> Used:
        """The batch without a rank whose data stays bad, if there is one, and it is then normal."""
        culprit = self._parts.decider.culprit(attempt, agreed, second.local_norms, expected)
        if culprit is None or not self._ranks_are_apart():
            return agreed, seen, None
        value, norms = _value(expected.signal, agreed, seen), seen.layer_norms
        better = self._recompute_without(culprit, again, agreed, moved)
        if better is None:
            return agreed, seen, None
        return *better, Correction((culprit,), expected, value, norms, hardware=False)

    def _ranks_are_apart(self) -> bool:
        """Whether a rank's batch is in no other rank's gradient, as it is where experts get tokens of all."""
        observer = self._parts.observer
        return observer.shards is None or fully_sharded(observer.parameters)

    def _repeat(self, again: Again, agreed: Agreed, seen: Observation) -> Used:
        """Of a batch that looks fine: its gradients must be the same the second time, to the bit.

        If they are not, and the third time those of the second, the hardware was wrong the first time.
        Otherwise the loop does not repeat itself: it goes on with the first result, and this is not done
        again.
        """
        kept, first = self._repeats.keep(), Result(agreed, self._collect(), seen.grad_norm)
        self._parts.replayer.computed()
        comparable = self._computed_again(again)[-1]
        apart = self._apart(kept)
        if (apart < 0).all():
            return agreed, seen, None
        what, before = kept.names[int(apart.max())], self._repeats.keep()
        last_agreed, last_seen, last, repeated = self._computed_again(again)
        if not (comparable and repeated) or (self._apart(before) >= 0).any():
            self._repeats.stop(kept)
            if self._parts.agreement.rank == 0:
                log.info("recompute is off: computed again, a batch gives another %s each time", what)
            return agreed, seen, None
        ranks = tuple(faulty_ranks(first, last, self._parts.device)) or (lone_rank(apart),)
        named = ", ".join("unknown" if rank < 0 else str(rank) for rank in ranks)
        reason = f"computed again, the batch gave another {what} on rank {named}: a hardware fault"
        fault = Correction(ranks, _REPEATED, seen.grad_norm, seen.layer_norms, reason=reason)
        return last_agreed, last_seen, fault

    def _apart(self, kept: Kept) -> Floats:
        """The first tensor of each rank that is not as in ``kept``, -1 where all are; [ranks]."""
        return self._parts.agreement.exchange([float(self._repeats.first_apart(kept))])[:, 0]

    def _computed_again(self, again: Again) -> tuple[Agreed, Observation, Result, bool]:
        """The same batch again, and whether on all ranks it drew the random numbers of the first time."""
        agreed, seen = self._recompute(again)
        local = math.nan if self._parts.local is None else self._parts.local.take()
        other = not self._parts.replayer.repeated()
        local_norms, others = self._parts.agreement.collect(local, digest=self._digest(), flag=other)
        return agreed, seen, Result(agreed, local_norms, seen.grad_norm), not others

    def _recompute(self, again: Again, *, excluded: bool = False) -> tuple[Agreed, Observation]:
        """The same batch again; ``excluded``: this rank joins the collectives, but adds nothing."""
        state = self._parts.state
        state.undo_forward()
        self._parts.replayer.reset()
        self._parts.accumulation.restart(excluded=excluded)
        again()
        if excluded:
            state.revert_buffers()
        state.scaler.unscale()
        return self._observe()

    def _recompute_without(
        self, culprit: int, again: Again, bad: Agreed, moved: Movement | None
    ) -> tuple[Agreed, Observation] | None:
        """The mean over the other ranks; None if that is bad too."""
        world_size = self._parts.agreement.world_size
        _, seen = self._recompute(again, excluded=culprit == self._parts.agreement.rank)
        factor = world_size / (world_size - 1)
        agreed, seen = without(bad, culprit), seen.scaled(factor)
        if self._parts.decider.foresee(agreed, seen, moved).kind != "ok":
            return None
        scale_(self._parts.observer.gradients(), factor)
        self._parts.decider.rank_exclusion.count()
        return agreed, seen

    def _without_samples(
        self,
        again: Again,
        bad: list[SampleEvidence],
        agreed: Agreed,
        seen: Observation,
        expected: Verdict,
        moved: Movement | None,
    ) -> Used:
        """The batch without its bad samples, if that is asked for, possible, and then normal."""
        search, tried = self._parts.search, False
        for left_out in search.excluded(bad) if self._parts.config.exclude_samples else []:
            if (without_them := search.without(left_out)) is None:
                break
            better = self._recompute(without_them)
            if (
                self._parts.decider.foresee(*better, moved).kind == "ok"
                and not better[0].dropped_micro_batches
            ):
                value, samples = _value(expected.signal, agreed, seen), tuple(s.sample for s in left_out)
                fixed = Correction((), expected, value, seen.layer_norms, hardware=False, samples=samples)
                return *better, fixed
            tried = True
        return (*self._recompute(again), None) if tried else (agreed, seen, None)


def _value(signal: str, agreed: Agreed, seen: Observation) -> float:
    """Of the signal that a verdict is of."""
    jump = math.nan if agreed.buffer_jump is None else agreed.buffer_jump
    return {"loss": agreed.loss, "buffers": jump}.get(signal, seen.grad_norm)
