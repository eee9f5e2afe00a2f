"""Healthy states kept in memory, so that a rollback costs milliseconds.

A snapshot is a *candidate* until enough clean steps followed it; only then does a rollback use it, because an
explosion shows one or two steps after the update that caused it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.act import rng
from guard.act.buffers import Buffers
from guard.act.frozen import FrozenWeights
from guard.act.stores import (
    BufferStore,
    OptimizerStore,
    Place,
    StateStore,
    TensorStore,
    advice_on_memory,
    parameters_of,
    state_of,
)
from guard.config import SnapshotConfig
from guard.errors import RankDivergence
from guard.observe.shards import version
from guard.types import Floats

GENERATORS = "guard.generators"


class Stateful(Protocol):
    """Anything a rollback can restore."""

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state, or a view that ``copy.deepcopy`` can copy."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Continues from what ``state_dict`` returned."""
        ...


@dataclass(slots=True, eq=False)
class Snapshot:
    """One state of everything that a training step changes."""

    step: int = -1
    clean_steps: int = 0
    healthy: bool = False
    returns: int = 0
    held: list[Tensor] = field(default_factory=list)
    """The weights that ``parameters`` has copies of."""
    parameters: TensorStore = field(default_factory=TensorStore)
    buffers: BufferStore = field(default_factory=BufferStore)
    optimizer: OptimizerStore = field(default_factory=OptimizerStore)
    states: dict[str, StateStore] = field(default_factory=dict)
    generators: dict[str, Any] = field(default_factory=dict)
    place: Place = "device"

    @classmethod
    def at(cls, place: Place) -> Snapshot:
        """An empty one. Buffers stay on their device, since the next forward changes them."""
        return cls(parameters=TensorStore(place), optimizer=OptimizerStore(place), place=place)

    def state(self, name: str) -> StateStore:
        """Where that of a name is copied to."""
        return self.states.setdefault(name, StateStore(self.place))

    def wait(self) -> None:
        """Before the weights change: makes the device finish copying them first."""
        self.parameters.wait()
        self.optimizer.wait()

    def intact(self) -> bool:
        """Whether no bit of it has changed in memory since it was taken; the host waits for the device."""
        model = self.parameters.intact() and self.buffers.intact() and self.optimizer.intact()
        return model and all(state.intact() for state in self.states.values())


class Subject:
    """What is saved and restored: model, optimizer, named states, random number generators.

    Args:
        trained: the weights that the optimizer steps, a list that follows what it has; by default all in it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        states: Mapping[str, Stateful],
        trained: Sequence[Tensor] | None = None,
    ) -> None:
        self._model, self._devices = model, rng.devices_of(model)
        self._trained = parameters_of(optimizer) if trained is None else trained
        self._frozen = FrozenWeights()
        self._buffers = Buffers(model)
        self._optimizer = optimizer
        self._states = dict(states)
        self._written: set[str] = set()
        self.unheld: list[Tensor] = []
        """Frozen weights that the last snapshot does not hold; always the same list."""

    def joined(self, snapshots: Sequence[Snapshot]) -> None:
        """Weights are trained that were not before: what they are now is what they were in each snapshot."""
        self._buffers.rescan()
        for snapshot in snapshots:
            known = {id(parameter) for parameter in snapshot.held}
            added = [parameter for parameter in self._trained if id(parameter) not in known]
            snapshot.parameters.extend(added)
            snapshot.held = [*snapshot.held, *added]

    def restart(self) -> None:
        """All weights may have been loaded: what was seen of the frozen ones says nothing any more."""
        self._frozen = FrozenWeights()

    def keys(self) -> list[int]:
        """How many keys each group of the optimizer has."""
        return [len(group) for group in self._optimizer.param_groups]

    def note_keys(self, before: list[int]) -> None:
        """The optimizer made a step: notes the keys that it added to its groups since ``keys``."""
        for size, group in zip(before, self._optimizer.param_groups, strict=False):
            if len(group) > size:
                self._written.update(list(group)[size:])

    def _to_hold(self) -> list[Tensor]:
        trained = {id(parameter): parameter for parameter in self._trained}
        every = {id(p): p for p in (*self._model.parameters(), *parameters_of(self._optimizer))}
        frozen = [parameter for i, parameter in every.items() if i not in trained]
        held = self._frozen.to_hold(frozen, self._trained)
        known = set(map(id, held))
        self.unheld[:] = [parameter for parameter in frozen if id(parameter) not in known]
        return [*trained.values(), *held]

    def save_to(self, snapshot: Snapshot, *, keep: frozenset[str] = frozenset()) -> None:
        """Copies the present state into ``snapshot``, which keeps its own of the named states in ``keep``."""
        snapshot.held = self._to_hold()
        snapshot.parameters.save(snapshot.held)
        snapshot.buffers.save(self._buffers)
        snapshot.optimizer.save(self._optimizer)
        for name, stateful in self._states.items():
            if name not in keep:
                snapshot.state(name).save(stateful.state_dict())
        if GENERATORS not in keep:
            snapshot.generators = rng.capture(self._devices)

    def reserve(self, snapshot: Snapshot, held: Sequence[Tensor]) -> None:
        """Allocates what saving to ``snapshot`` will need; ``held``: the weights that it will hold."""
        snapshot.parameters.reserve(held)
        snapshot.buffers.reserve(self._buffers)
        snapshot.optimizer.reserve(self._optimizer)
        for name, stateful in self._states.items():
            snapshot.state(name).reserve(stateful.state_dict())

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self._trained[0].device

    @property
    def stepped(self) -> int:
        """How many parameters have moments by now."""
        return len(state_of(self._optimizer))

    def save_advanced(self, snapshot: Snapshot) -> None:
        """Copies what a step advances on the host into ``snapshot``: schedule, rates, detector, limits."""
        snapshot.optimizer.save_groups(self._optimizer)
        for name, stateful in self._states.items():
            if name.startswith("guard."):
                snapshot.state(name).save(stateful.state_dict())

    def restore_from(self, snapshot: Snapshot, *, keep: frozenset[str] = frozenset()) -> None:
        """Restores ``snapshot``; the named states in ``keep`` stay as they are."""
        snapshot.parameters.restore(snapshot.held)
        snapshot.buffers.restore(self._buffers)
        snapshot.optimizer.restore(self._optimizer, written=self._written)
        for name, stateful in self._states.items():
            if name not in keep:
                stateful.load_state_dict(snapshot.states[name].load())
        if GENERATORS not in keep:
            rng.restore(snapshot.generators)

    def version(self) -> tuple[Any, ...]:
        """Changes whenever a parameter, a buffer, the optimizer's state or a hyperparameter was loaded."""
        moments = [v for s in state_of(self._optimizer).values() for v in s.values() if isinstance(v, Tensor)]
        buffers = [b for b in self._buffers.read() if b is not None]
        tensors = (*self._model.parameters(), *self._trained, *buffers, *moments)
        groups = [
            [(k, v) for k, v in group.items() if isinstance(v, int | float | str | tuple | None)]
            for group in self._optimizer.param_groups
        ]
        return len(moments), sum(version(t) for t in tensors), groups


class SnapshotRing:
    """The last few snapshots and their health."""

    def __init__(self, config: SnapshotConfig, subject: Subject) -> None:
        self._config = config
        self._subject = subject
        self._snapshots: list[Snapshot] = []
        self._free: list[Snapshot] = []
        self._reserved: tuple[int, int] | None = None
        self._keeps_oldest: Callable[[], bool] = lambda: False

    def keep_oldest(self, needed: Callable[[], bool]) -> None:
        """While it is needed the oldest snapshot makes no room: the one after it does."""
        self._keeps_oldest = needed

    def reserve(self) -> None:
        """Allocates what all snapshots will need, as soon as that is known: weights at the start, moments
        after the first step.

        Raises:
            GuardError: there is not so much memory; it says what to lower.
        """
        held = self._snapshots[-1].held
        if self._reserved == (now := (len(held), self._subject.stepped)):
            return
        self._reserved = now
        with advice_on_memory(self._config, self._subject.device):
            while len(self._snapshots) + len(self._free) < self._config.keep:
                self._free.append(Snapshot.at(self._config.place))
            for snapshot in (*self._snapshots, *self._free):
                self._subject.reserve(snapshot, held)

    def due(self, step: int) -> bool:
        """Whether a snapshot should be taken after ``step``."""
        return step % self._config.every_steps == 0 and self.is_new(step)

    def is_new(self, step: int) -> bool:
        """Whether a snapshot can be taken after ``step``: there is none of it, and room for one.

        Neither a candidate nor the last healthy snapshot is ever dropped to make room.
        """
        newest = self._snapshots[-1].step if self._snapshots else -1
        has_room = len(self._snapshots) < self._config.keep or sum(s.healthy for s in self._snapshots) > 1
        return step > newest and has_room

    def take(self, step: int, *, healthy: bool = False) -> None:
        """Saves the state after ``step``; ``healthy`` only where nothing can have harmed it yet."""
        snapshot = self._slot()
        with advice_on_memory(self._config, self._subject.device):
            self._subject.save_to(snapshot)
        snapshot.step, snapshot.healthy, snapshot.clean_steps, snapshot.returns = step, healthy, 0, 0
        self._snapshots.append(snapshot)

    def complete(self, step: int) -> None:
        """The step to ``step`` stands: a snapshot that was taken while it was in flight is of after it."""
        if self.is_fresh(step):
            self._subject.save_advanced(self._snapshots[-1])

    def retake(self, *, keep: frozenset[str]) -> None:
        """Saves the present state over the newest snapshot, but for the named states in ``keep``."""
        self._subject.restart()
        self._subject.save_to(self._snapshots[-1], keep=keep)

    def before_step(self) -> None:
        if self._snapshots:
            self._snapshots[-1].wait()

    def joined(self) -> None:
        """The optimizer has got further weights, before their first step."""
        self._subject.joined(self._snapshots)

    def reset(self) -> None:
        """Drops all snapshots; their memory is reused."""
        self._subject.restart()
        self._drop(list(self._snapshots))

    @property
    def newest_step(self) -> int:
        """The step of the newest snapshot, 0 where there is none."""
        return self._snapshots[-1].step if self._snapshots else 0

    def is_fresh(self, step: int) -> bool:
        """Whether the newest snapshot is a candidate of the state after ``step``, and nothing followed it."""
        return bool(self._snapshots) and self._snapshots[-1].step == step and not self._snapshots[-1].healthy

    @property
    def just_taken(self) -> bool:
        """Whether the newest snapshot is a candidate that no step has followed."""
        return (
            bool(self._snapshots) and not self._snapshots[-1].healthy and not self._snapshots[-1].clean_steps
        )

    def clean_step(self, step: float = math.inf) -> None:
        """A clean step led to ``step``: it counts for the candidates from before it."""
        for snapshot in self._snapshots:
            if not snapshot.healthy and snapshot.step < step:
                snapshot.clean_steps += 1
                snapshot.healthy = snapshot.clean_steps >= self._config.clean_steps

    def drop_candidates(self) -> None:
        """A step was not clean: a candidate may hold the cause of it."""
        self._drop([s for s in self._snapshots if not s.healthy])

    def has_healthy(self) -> bool:
        return any(s.healthy for s in self._snapshots)

    def spent(self) -> Snapshot | None:
        """The only healthy snapshot, if it was restored twice without success."""
        healthy = [s for s in self._snapshots if s.healthy]
        return healthy[0] if len(healthy) == 1 and healthy[0].returns >= 2 else None

    def target(self) -> Snapshot | None:
        """The snapshot a rollback restores: the newest healthy one.

        One that was restored twice without success is dropped for an older one, if there is any.
        """
        healthy = [s for s in self._snapshots if s.healthy]
        if len(healthy) > 1 and healthy[-1].returns >= 2:
            self._drop([healthy[-1]])
            healthy.pop()
        return healthy[-1] if healthy else None

    def newest(self, step: int) -> Snapshot | None:
        """The newest healthy snapshot of ``step`` or before; None where there is none."""
        return next((s for s in reversed(self._snapshots) if s.healthy and s.step <= step), None)

    def drop_after(self, step: int) -> None:
        """Drops the snapshots that were taken after ``step``."""
        self._drop([s for s in self._snapshots if s.step > step])

    def drop_damaged(self, exchange: Callable[[Sequence[float]], Floats]) -> str:
        """Drops the snapshots of which a bit has changed on some rank; returns which, in words. Collective.

        Args:
            exchange: the row of each rank, [ranks, columns].

        Raises:
            RankDivergence: on all ranks: none is left.
        """
        if not self._snapshots:
            return ""
        rows = exchange([float(not snapshot.intact()) for snapshot in self._snapshots])
        damaged = [s for s, column in zip(self._snapshots, rows.T, strict=True) if column.any()]
        if not damaged:
            return ""
        steps = ", ".join(str(snapshot.step) for snapshot in damaged)
        ranks = ", ".join(str(rank) for rank, row in enumerate(rows) if row.any())
        said = f"memory was damaged: the snapshot of step {steps} has changed on rank {ranks}"
        self._drop(damaged)
        if not self.has_healthy():
            raise RankDivergence(f"{said}: replace the device, and resume from the last good checkpoint")
        return said

    def oldest(self) -> Snapshot:
        """The oldest healthy snapshot."""
        return next(s for s in self._snapshots if s.healthy)

    def oldest_step(self) -> int:
        """The step of the oldest healthy snapshot; negative where there is none."""
        return self.oldest().step if self.has_healthy() else -1

    def restore(self, snapshot: Snapshot, *, keep: frozenset[str]) -> None:
        """Restores ``snapshot``, but for the named states in ``keep``; drops all that were taken after it."""
        self._drop([s for s in self._snapshots if s.step > snapshot.step])
        snapshot.returns += 1
        self._subject.restore_from(snapshot, keep=keep)

    def _slot(self) -> Snapshot:
        if self._free:
            return self._free.pop()
        if len(self._snapshots) < self._config.keep:
            return Snapshot.at(self._config.place)
        dropped = [s for s in self._snapshots if s.healthy][int(self._keeps_oldest())]
        self._snapshots.remove(dropped)
        return dropped

    def _drop(self, snapshots: list[Snapshot]) -> None:
        for snapshot in snapshots:
            self._snapshots.remove(snapshot)
            self._free.append(snapshot)
