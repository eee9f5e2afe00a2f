"""Damaged memory: a tensor that is not equal on all ranks is copied from a healthy one, or the steps since
all ranks were equal are taken again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.act.replicas import Replicas, odd_ranks, replicated, whole_gradients
from guard.act.resting import Resting
from guard.act.shard_copies import ShardCopies
from guard.act.training_state import TrainingState
from guard.agree.agreement import SQUARE
from guard.agree.divergence import same_squares
from guard.config import GuardConfig
from guard.errors import RankDivergence
from guard.observe.observer import Observer
from guard.records import Verdict
from guard.types import Agreed, Correction, Damage, Decision, Evidence, Floats, Observation, Plan

_DIFFER = Verdict("suspect", "replicas", 0.0)


class Repairs:
    """Finds and corrects, in exact steps, what differs between ranks that hold the same.

    Args:
        exchange: the row of each rank, [ranks, columns]. Collective.
        replays: whether a rollback restores the position in the data, so that its batches can come again.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        observer: Observer,
        state: TrainingState,
        config: GuardConfig,
        group: dist.ProcessGroup | None,
        exchange: Callable[[Sequence[float]], Floats],
        *,
        replays: bool,
    ) -> None:
        every = config.replicas if isinstance(config.replicas, int) else None
        self.on = config.replicas != "off" and config.mode != "off" and _ranks(group) > 1
        self._observer, self._state, self._acts, self._replays = observer, state, config.acts, replays
        device = observer.parameters[0].device
        self._whole = replicated(model, optimizer, observer)
        self._replicas = Replicas(self._whole, every, group, device)
        self._shards = None if observer.shards is None else ShardCopies(optimizer, observer, group, device)
        self._resting: Resting | None = None
        if self.on and observer.shards is not None:
            self._resting = Resting(optimizer, observer, every, exchange)
        self._budget = config.budget
        self._found: list[Damage] = []
        self._back: int | None = None
        self._skips = self._begun = self._looked = self._asked = False
        self._differ = False
        """Reduced gradients differ by rounding, or were never reduced."""
        self._unequal = self._rounds = False
        """Their norms are unequal; they were before, and the state was equal after it."""
        self._repaired: deque[int] = deque()
        self._suspects: tuple[int, list[str], dict[str, Tensor] | Floats] | None = None
        """Step of a finding that no majority decides, names of its tensors, those that this rank holds; of a
        gradient that is gone the squared norm on each rank."""
        self._squares: Floats = np.zeros(0)
        """The squared norm of the present gradient on each rank."""

    @property
    def stops(self) -> bool:
        """Whether this batch is not applied."""
        return self._back is not None or self._skips

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` steps is to be compared. The same on all ranks."""
        decides = self._suspects is not None and self._suspects[0] == step
        return self.on and self._begun and (self._asked or decides or self._replicas.due(step))

    def ask(self, squares: Floats, *, bad: bool) -> None:
        """After a step that the device decided: the next attempt compares out of turn where it looked
        ``bad``, or where the norms of the ranks were not equal and that is not by design.

        Args:
            squares: the squared norm of the gradient on each rank.
        """
        self._unequal = not _equal(squares) and not self._rounds
        self._asked = bad or self._unequal

    def gradient_differed(self, squares: Floats, step: int, attempt: int) -> float | None:
        """The device skipped the step after ``step``, since the norms of the ranks differ by more than
        rounding. Its gradients are gone: the batch comes again with those since all ranks were equal.

        Args:
            squares: the squared norm on each rank.

        Returns:
            That of a rank that has most, or of the first; None where they do not differ so, or always did.
        """
        if not self.on or self._differ or same_squares(squares):
            return None
        odd = odd_ranks(squares, None)
        self._found = [Damage("reduced gradient", tuple(odd), 0)]
        self._count(attempt)
        self._back = self._state.snapshot_of(self._replicas.verified) if self._replays else None
        self._skips = self._back is None
        if not odd:
            self._suspects = step, ["reduced gradient"], squares
        return float(next(square for rank, square in enumerate(squares) if rank not in odd))

    def begin(self, step: int, attempt: int) -> None:
        """Before the gradients of the attempt are read: compares the state after ``step`` steps when due.

        Collective: all ranks call it after the same steps. Not in the first attempt, in which they find out
        whether they train the same model.

        Raises:
            RankDivergence: on all ranks: what is damaged cannot be corrected, or too often.
        """
        self._found, self._back, self._skips = [], None, False
        self._looked = not self.on or not self._begun
        if self._resting is not None and (changed := self._resting.changed()):
            self._found = changed
            self._count(attempt)
            self._back_from(step)
        elif self.due(step):
            self._check(step, attempt)
            self._rounds |= self._unequal and not self._found
        self._begun, self._asked, self._unequal = True, False, False

    def rest(self, step: int) -> None:
        """After a step was applied: forward and backward change nothing before the next one."""
        if self._resting is not None:
            self._resting.note(step)

    def _back_from(self, step: int) -> None:
        """No other rank has what was damaged after ``step``: back to the newest snapshot from before."""
        if not self._acts:
            return
        self._back = self._state.snapshot_of(step)
        if self._back is None:
            raise RankDivergence(f"{_where(self._found)}, of which there is no snapshot: {_REPLACE}")

    def look(self, step: int, attempt: int, *, bad: bool) -> None:
        """The same out of turn, where the gradients are ``bad``: that is agreed, so all ranks come here."""
        if bad and not self._looked and not self._found:
            self._check(step, attempt)

    def corrected(
        self, rows: Floats, squares: Floats, owners: list[int], step: int, attempt: int
    ) -> tuple[Floats, Floats, list[int]]:
        """Rows, squared norms of the pieces and their owners; measured again where a bit had flipped in a
        reduced gradient, which is then the same on all ranks."""
        self._squares = rows[:, SQUARE]
        if not self._corrects_gradient(self._squares, step, attempt):
            return rows, squares, owners
        pieces, owners = self._observer.measure()
        squares = pieces.cpu().numpy()
        rows[:, SQUARE] = squares.sum()
        return rows, squares, owners

    def _corrects_gradient(self, squares: Floats, step: int, attempt: int) -> bool:
        """``squares``: of the norm on each rank. Where they are equal, nothing is looked at."""
        if not self.on or not self._acts or self._differ or self._state.scaler.active:
            return False
        if _equal(squares):
            return False
        gradients = whole_gradients(self._observer)
        found = self._replicas.flipped_gradient(gradients)
        if not found:
            self._differ = True
            return False
        self._count(attempt)
        self._found += found
        if not found[0].ranks:
            self._back = self._state.snapshot_of(self._replicas.verified)
            self._skips = self._back is None
            self._suspect(step, found, gradients)
        self._replicas.copy_gradient(gradients[found[0].tensor], found[0].source)
        return True

    def correction(self, seen: Observation, step: int) -> Correction | None:
        """What was found in this attempt; and, where steps were taken again, which rank it was."""
        if self._found:
            return self._as_correction(seen, self._words())
        if self._suspects is None or self._suspects[0] != step:
            return None
        (_, names, kept), self._suspects = self._suspects, None
        if isinstance(kept, dict):
            ranks = self._replicas.farther(kept, {**self._read(), **whole_gradients(self._observer)})
        else:
            ranks = np.flatnonzero(kept != self._squares).tolist()
        if len(ranks) != 1:
            return None
        self._found = [Damage(name, tuple(ranks), 0) for name in names]
        where = f"the {names[0]}: it was the memory of rank {ranks[0]} that was damaged"
        return self._as_correction(seen, f"the steps up to this one, taken again, decide on {where}")

    def evidence(
        self, agreed: Agreed, seen: Observation, *, attempt: int, step: int, rate: float
    ) -> Evidence | None:
        """Of a batch that is not applied; None of one that is judged as usual."""
        if not self.stops:
            return None
        rung = "skip" if self._back is None else "rollback"
        return Evidence(
            attempt=attempt,
            step=step,
            agreed=agreed,
            grad_norm=seen.grad_norm,
            layer_norms=seen.layer_norms,
            verdict=_DIFFER,
            decision=Decision(rung, self._words(), verified=self._back),  # type: ignore[arg-type]
            clip=Plan(seen),
            learning_rate=rate,
            fault=self._as_correction(seen, self._words()),
        )

    def returned(self, step: int) -> None:
        """After a rollback to ``step``; if it was to where all ranks were equal, they must be."""
        back, self._back = self._back, None
        self._replicas.returned(step, verified=back is not None)
        if self._shards is not None:
            self._shards.returned(step)
        if self._resting is not None:
            self._resting.forget()
        if back is None:
            return
        found = self._compare(step)
        if any(not damage.ranks for damage in found):
            raise RankDivergence(f"{_where(found)}, also in the snapshot of step {step}: {_REPLACE}")
        self._heal(found)

    def _compare(self, step: int) -> list[Damage]:
        """What differs, of whole tensors and of shards that several ranks hold. Collective."""
        before = self._replicas.verified
        found = self._replicas.check(step)
        if self._shards is not None:
            found = [*found, *self._shards.check(step)]
        if found:
            self._replicas.verified = before
        return found

    def _heal(self, damage: list[Damage]) -> None:
        for one in damage:
            if self._shards is None or not self._shards.heal(one):
                self._replicas.heal([one])

    def _read(self) -> dict[str, Tensor]:
        return {**self._whole(), **({} if self._shards is None else self._shards.read())}

    def _check(self, step: int, attempt: int) -> None:
        self._looked = True
        self._found = self._compare(step)
        if self._found and self._acts:
            self._count(attempt)
            self._correct(step)

    def _correct(self, step: int) -> None:
        found, known = self._found, [damage for damage in self._found if damage.ranks]
        verified = self._state.snapshot_of(self._replicas.verified)
        unknown = len(known) < len(found)
        # Of a snapshot that was taken later ``returned`` finds out whether the ranks are equal in it.
        back = self._state.snapshot_of(step) if unknown and verified is None else verified
        if unknown and back is None:
            raise RankDivergence(f"{_where(found)}: {_REPLACE}")
        if unknown:
            self._suspect(step, [damage for damage in found if not damage.ranks], self._read())
        self._heal(known)
        if unknown or (self._replays and verified is not None):
            self._back = back
            return
        if verified is not None:
            self._state.drop_snapshots_after(verified)
        self._replicas.verified = step

    def _suspect(self, step: int, found: list[Damage], tensors: Mapping[str, Tensor]) -> None:
        names = [damage.tensor for damage in found]
        self._suspects = step, names, {n: tensors[n].detach().clone() for n in names if n in tensors}

    def _count(self, attempt: int) -> None:
        while self._repaired and self._repaired[0] <= attempt - self._budget.window_steps:
            self._repaired.popleft()
        self._repaired.append(attempt)
        if len(self._repaired) > max(1, self._budget.rollbacks):
            raise RankDivergence(
                f"{_where(self._found)}, after {len(self._repaired) - 1} repairs within "
                f"{self._budget.window_steps} attempts: {_REPLACE}"
            )

    def _as_correction(self, seen: Observation, reason: str) -> Correction:
        ranks = {rank for damage in self._found for rank in damage.ranks}
        number = float(len(self._found))
        return Correction(tuple(sorted(ranks)) or (-1,), _DIFFER, number, seen.layer_norms, reason=reason)

    def _words(self) -> str:
        where = _where(self._found)
        if self._back is not None:
            return f"{where}: back to step {self._back}, where all ranks were equal; its batches come again"
        if self._skips:
            return f"{where}: the batch is left out"
        return f"{where}: copied from rank {self._found[0].source}" if self._acts else where


def _equal(squares: Floats) -> bool:
    return np.array_equal(squares, np.full_like(squares, squares[0]), equal_nan=True)


def _ranks(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


_REPLACE = "replace the device, and resume from the last good checkpoint"


def _where(found: list[Damage]) -> str:
    """``memory was damaged: the weight 0.bias differs on rank 1, and 2 more tensors``."""
    if not found:
        return "memory was damaged"
    named = next((damage for damage in found if damage.ranks), found[0])
    ranks = ", ".join(map(str, named.ranks))
    where = f"on rank {ranks}" if ranks else "between the ranks, none of which has most"
    more = f", and {len(found) - 1} more tensors" if len(found) > 1 else ""
    return f"memory was damaged: the {named.tensor} differs {where}{more}"
