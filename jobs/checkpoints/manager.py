"""A run's checkpoints: saved while it trains, good after clean steps, and what it returns to."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard import GuardMetrics
from guard.act import rng
from guard.act.snapshot import Stateful
from jobs.checkpoints.errors import DamagedCheckpoint, UnsupportedState, reason
from jobs.checkpoints.health import Candidates
from jobs.checkpoints.history import History
from jobs.checkpoints.listing import checkpoint_folder, checkpoint_name, good_steps, manifests, read_manifest
from jobs.checkpoints.load import Content, of_rank, read
from jobs.checkpoints.manifest import Health
from jobs.checkpoints.ranks import Ranks
from jobs.checkpoints.retention import retired
from jobs.checkpoints.shards import lay_out
from jobs.checkpoints.spec_match import check_spec
from jobs.checkpoints.stager import CheckpointStager
from jobs.checkpoints.writer import CheckpointHeader, Writer
from jobs.errors import JobError
from jobs.run_dir.open_storage import open_storage
from jobs.run_dir.storage import shown

Notify = Callable[[str, str], None]
STAYS = frozenset({"guard", "faults", "progress", "cursor", "hardware"})
"""What a rollback within a run leaves as it is: counters and budgets go on, and so does the data."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Which checkpoints are kept, and when one is good.

    Attributes:
        keep: how many of the newest good ones stay.
        best: ``max:METRIC`` or ``min:METRIC``: the good one with the best value stays, too.
        clean_steps: clean steps that must follow before a checkpoint is good.
    """

    keep: int = 3
    best: str | None = None
    clean_steps: int = 2


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded: its step, and the state dicts that were not given to their parts, by name."""

    step: int
    left: dict[str, Any]


class CheckpointManager:
    """Saves and loads everything that a run resumes from. All methods but ``latest`` are for all ranks.

    The training loop waits only while the state is copied. Writing, promoting and deleting happen one
    after the other in a thread; what there is to tell of it is told at the next call.

    Ray Train is given no checkpoints: it would return to the last one reported, of which it may have kept
    no other. A worker group that it restarts, like a job that is started again, takes the newest good one
    from here, and there a rollback has already deleted what it undid.

    Args:
        folder: path or URL under which ``step-NNNNNNNN`` folders lie.
        parts: the objects to save, by name, in the order in which they are loaded (the guard after what it
            guards); each has ``state_dict`` and ``load_state_dict``.
        policy: what is kept, and when it is good.
        spec: the job's spec, as JSON; a checkpoint of another one is refused.
        describe: the present attempt and the last evaluation, for the manifest.
        metrics: where saves are counted.
        notify: is told, as level and text, what a person should know; called in the loop's thread.
        timeout_s: how long a rank that does not answer is waited for.
        history: the file that tells what became of every checkpoint.
    """

    def __init__(
        self,
        folder: str | Path,
        parts: Mapping[str, Stateful],
        *,
        policy: Policy | None = None,
        spec: Mapping[str, Any] | None = None,
        describe: Callable[[], tuple[int, Mapping[str, float]]] = lambda: (0, {}),
        metrics: GuardMetrics | None = None,
        notify: Notify | None = None,
        timeout_s: float = 60.0,
        history: Path | None = None,
    ) -> None:
        self._folder, self._parts = folder, dict(parts)
        self._policy, self._spec = policy or Policy(), dict(spec or {})
        self._describe, self._metrics = describe, metrics
        self._notify = _nobody if notify is None else notify
        self._storage = open_storage(folder)
        self._ranks = Ranks(timeout_s)
        self._history = History(history if self._ranks.rank == 0 else None)
        self._stage = CheckpointStager(parts, self._ranks.rank, self._ranks.world_size)
        self._writer = Writer(self._storage, self._ranks)
        self._candidates = Candidates(self._policy.clean_steps)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._told: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._saved: int | None = None
        if self._ranks.rank == 0:
            self._storage.sweep()

    def save(self, step: int, *, closing: bool = False) -> None:
        """Copies the present state and has it written. A disk that refuses is told of, not raised.

        Args:
            step: optimizer steps applied.
            closing: the run ends here. Waits until all is written; what was saved since the last step that
                was not clean is good, although no step will follow.
        """
        if self._writing is not None:
            self._writing.result()  # its copy is still being written, and the memory is used again
        if self._saved != step:
            self._save(step, "good" if closing and self._candidates.calm else "candidate")
        if closing:
            self._promote(self._candidates.settle())
            self.finish()
        self._tell()

    def clean_step(self) -> None:
        """A step was applied, and the guard found nothing wrong with it."""
        self._promote(self._candidates.clean_step())
        self._tell()

    def doubt(self) -> None:
        """A step was not clean: what is not good yet may hold the cause of it, and is deleted."""
        self._drop(self._candidates.doubt())
        self._tell()

    def forget_after(self, step: int) -> None:
        """The run has returned to the good state of ``step``: checkpoints of later ones are deleted."""
        self._drop(self._candidates.doubt())
        self._candidates.returned()
        self._saved = None
        if self._ranks.rank == 0:
            self._later(self._remove_after, step)

    def finish(self) -> None:
        """Waits until everything has been written."""
        self._thread.submit(lambda: None).result()
        self._tell()

    def latest(self) -> str | None:
        """The newest good checkpoint, relative to the job's folder."""
        step = next(iter(good_steps(self._storage)), None)
        return None if step is None else checkpoint_name(self._folder, step)

    def load_latest(self) -> int | None:
        """Continues from the newest good checkpoint and returns its step; None where there is none.

        Damaged ones are told of and set aside, what was no more than a candidate is deleted.

        Raises:
            SpecError: the checkpoint was made with another model, optimizer or data.
        """
        loaded = self._load(None, leave=frozenset())
        if self._ranks.rank == 0:
            self._later(self._remove_candidates)
            self.finish()
        return None if loaded is None else loaded.step

    def load_good(self, before: int | None = None, *, leave: Collection[str] = STAYS) -> Loaded | None:
        """Returns, within the run, to the newest good checkpoint. Workers are not restarted.

        Args:
            before: of this step or an earlier one.
            leave: parts that stay as they are; their saved states are in the answer.
        """
        self._drop(self._candidates.doubt())
        loaded = self._load(before, leave=leave)
        if loaded is not None:
            self.forget_after(loaded.step)
        return loaded

    def restore(self, before: int | None = None) -> int | None:
        """``load_good`` in the form that a guard asks for: the step, None if there is none."""
        loaded = self.load_good(before)
        return None if loaded is None else loaded.step

    def _save(self, step: int, health: Health) -> None:
        started = time.perf_counter()
        try:
            staged = self._stage.take()
        except UnsupportedState as error:
            self._failed(step, error)
            return
        attempt, metrics = self._describe()
        place = CheckpointHeader(step, attempt, health, metrics, self._spec)
        if health == "candidate":
            self._candidates.saved(step)
        self._saved = step
        blocked = time.perf_counter() - started
        self._writing = self._thread.submit(self._write, place, staged, blocked)

    def _write(self, place: CheckpointHeader, staged: Any, blocked: float) -> None:
        """In the thread: the outcome is counted and told, never raised."""
        started = time.perf_counter()
        try:
            manifest = self._writer.write(place, staged)
        except Exception as error:  # noqa: BLE001 - a checkpoint that fails does not end the training
            self._failed(place.step, error)
            return
        if manifest is not None:
            self._history.note("written", place.step, attempt=place.attempt, size=manifest.size)
        if self._metrics is not None and manifest is not None:
            seconds = blocked + time.perf_counter() - started
            self._metrics.checkpoint_written(
                step=place.step, seconds=seconds, blocked_seconds=blocked, size=manifest.size
            )
        if place.health == "good":
            self._history.note("good", place.step)
            self._retire()

    def _failed(self, step: int, error: Exception) -> None:
        self._saved = None
        self._history.note("failed", step)
        if self._metrics is not None:
            self._metrics.checkpoint("failed")
        self._told.put(("warning", f"no checkpoint of step {step}: {reason(error)}; training goes on"))

    def _promote(self, steps: list[int]) -> None:
        if self._ranks.rank == 0:
            for step in steps:
                self._later(self._make_good, step)

    def _drop(self, steps: list[int]) -> None:
        if steps:
            self._saved = None
        if self._ranks.rank == 0:
            for step in steps:
                self._later(self._remove_suspect, step)

    def _make_good(self, step: int) -> None:
        name = checkpoint_folder(step)
        if name not in self._storage.names():
            return  # it could not be written
        manifest = read_manifest(self._storage, name).model_copy(update={"health": "good"})
        self._storage.replace_manifest(name, manifest.render())
        self._count("good")
        self._history.note("good", step)
        self._retire()

    def _remove_suspect(self, step: int) -> None:
        if checkpoint_folder(step) in self._storage.names():
            self._storage.remove(checkpoint_folder(step))
            self._count("suspect")
            self._history.note("suspect", step)

    def _remove_after(self, step: int) -> None:
        for name in self._storage.names():
            if name > checkpoint_folder(step):
                self._storage.remove(name)
                self._history.note("undone", int(name.rpartition("-")[2]))

    def _remove_candidates(self) -> None:
        for manifest in manifests(self._storage)[0]:
            if manifest.health == "candidate":
                self._storage.remove(checkpoint_folder(manifest.step))
                self._history.note("unconfirmed", manifest.step)

    def _retire(self) -> None:
        policy = self._policy
        for step in retired(manifests(self._storage)[0], keep=policy.keep, best=policy.best):
            self._storage.remove(checkpoint_folder(step))
            self._history.note("retired", step)

    def _count(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.checkpoint(outcome)

    def _later(self, work: Callable[..., None], *arguments: Any) -> None:
        """Does rank 0's work on the storage after all that was asked before."""

        def guarded() -> None:
            try:
                work(*arguments)
            except Exception as error:  # noqa: BLE001 - see _write
                self._told.put(("warning", f"checkpoints: {reason(error)}; training goes on"))

        self._thread.submit(guarded)

    def _tell(self) -> None:
        while not self._told.empty():
            self._notify(*self._told.get())

    def _load(self, before: int | None, *, leave: Collection[str]) -> Loaded | None:
        """All ranks try the same one; where any of them finds it damaged, all go on to the one before.

        Raises:
            JobError: there are good ones, and not one of them can be read.
        """
        self.finish()
        steps, problems = self._ranks.from_first(self._choices(before) if self._ranks.rank == 0 else None)
        for step in steps:
            content, problem = self._read(step)
            told = [p for p in self._ranks.gather(problem) if p is not None]
            if content is not None and not told:
                check_spec(content.manifest.spec, self._spec, step)
                self._reject(problems)
                return self._apply(content, leave)
            problems[checkpoint_folder(step)] = told[0]
        if problems:
            raise JobError(_nothing_left(self._folder, problems))
        return None

    def _choices(self, before: int | None) -> tuple[list[int], dict[str, str]]:
        """The steps of the good ones, newest first, and what is wrong with those that cannot be judged."""
        try:
            readable, problems = manifests(self._storage)
        except Exception as error:  # noqa: BLE001 - the other ranks wait for an answer
            return [], {"": reason(error)}
        good = [m.step for m in reversed(readable) if m.health == "good"]
        return [step for step in good if before is None or step <= before], problems

    def _read(self, step: int) -> tuple[Content | None, str | None]:
        rank = self._ranks.rank
        try:
            content = read(self._storage, checkpoint_folder(step), wanted=of_rank(rank))
            content.parts(rank, self._ranks.world_size)
        except DamagedCheckpoint as error:
            return None, str(error)
        except Exception as error:  # noqa: BLE001 - what is not foreseen must not leave the others waiting
            return None, reason(error)
        return content, None

    def _apply(self, content: Content, leave: Collection[str]) -> Loaded:
        rank, world_size = self._ranks.rank, self._ranks.world_size
        generators = content.generators(rank, world_size)
        if generators is not None:
            rng.restore(generators)  # before the guard, whose first snapshot holds them
        states = content.parts(rank, world_size)
        for name, part in self._parts.items():
            if name not in leave and name in states:
                part.load_state_dict(lay_out(states[name], part))
        self._saved = content.manifest.step
        self._candidates.returned()
        self._tell()
        return Loaded(content.manifest.step, {name: states[name] for name in leave if name in states})

    def _reject(self, problems: Mapping[str, str]) -> None:
        """Damaged ones are named and set aside, once an older one has been found to be whole."""
        if self._ranks.rank != 0:
            return
        for name, problem in problems.items():
            self._count("damaged")
            self._told.put(("warning", f"checkpoint {name} is damaged: {problem}; the one before it is used"))
            try:
                self._storage.set_aside(name)
            except OSError as error:
                self._told.put(("warning", f"cannot set {name} aside: {reason(error)}"))


def _nobody(_level: str, _text: str) -> None:
    pass


def _nothing_left(folder: str | Path, problems: Mapping[str, str]) -> str:
    listed = "; ".join(f"{name}: {problem}" if name else problem for name, problem in problems.items())
    none = f"no checkpoint under {shown(folder)} can be read ({listed})"
    return f"{none}: restore one, or start anew with --overwrite"


Checkpoints = CheckpointManager
"""The name by which programs outside import it."""
