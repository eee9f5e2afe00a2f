"""A run's checkpoints: saved while it trains, and promoted to good after clean steps."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from guard import GuardMetrics
from guard.act.snapshot import Stateful
from jobs.checkpoints.errors import UnsupportedState, reason
from jobs.checkpoints.health import Candidates
from jobs.checkpoints.history import History, last_good
from jobs.checkpoints.lifecycle import Lifecycle, Policy
from jobs.checkpoints.listing import checkpoint_folder, checkpoint_name, newest_step
from jobs.checkpoints.manifest import Health
from jobs.checkpoints.ranks import Ranks
from jobs.checkpoints.restorer import Loaded, Restorer
from jobs.checkpoints.stager import CheckpointStager, Staged
from jobs.checkpoints.writer import CheckpointHeader, Writer
from jobs.errors import JobError
from jobs.run_dir.open_storage import open_storage
from jobs.run_dir.storage import shown

Notify = Callable[[str, str], None]
KEPT_ON_ROLLBACK = frozenset({"guard", "faults", "progress", "cursor", "hardware"})
"""Parts that a rollback within a run leaves as they are: counters, budgets and the data position."""


class CheckpointManager:
    """Saves and loads everything that a run resumes from. Every rank must call each method but ``latest``.

    The training loop waits only while the state is copied. Writing, promoting and deleting happen one
    after the other in a thread; their messages are passed to ``notify`` at the next call.

    Ray Train is given no checkpoints: it would return to the last one reported, and may have kept no other.
    A worker group that it restarts, like a job that is started again, takes the newest good one from here,
    after a rollback has deleted the later ones.

    Args:
        folder: path or URL that contains the ``step-NNNNNNNN`` folders.
        parts: the objects to save, by name, in the order in which they are loaded (the guard after what it
            guards); each has ``state_dict`` and ``load_state_dict``.
        policy: which checkpoints are kept, and when one is good.
        spec: the job's spec, as JSON; a checkpoint of another one is refused.
        data: what identifies the training data, as JSON; a checkpoint of other data is refused.
        accept_other_data: it is continued from, with a warning.
        describe: the present attempt and the last evaluation, for the manifest.
        metrics: where saves are counted.
        notify: called in the loop's thread with the level and text of each message for the user.
        timeout_s: a rank that does not answer for this long is an error.
        history: the file that records what became of every checkpoint.
    """

    def __init__(
        self,
        folder: str | Path,
        parts: Mapping[str, Stateful],
        *,
        policy: Policy | None = None,
        spec: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        accept_other_data: bool = False,
        describe: Callable[[], tuple[int, Mapping[str, float]]] = lambda: (0, {}),
        metrics: GuardMetrics | None = None,
        notify: Notify = lambda _level, _text: None,
        timeout_s: float = 60.0,
        history: Path | None = None,
    ) -> None:
        policy = policy or Policy()
        self._folder, self._spec, self._data = folder, dict(spec or {}), dict(data or {})
        self._describe, self._metrics, self._notify = describe, metrics, notify
        self._storage = open_storage(folder)
        self._ranks = Ranks(timeout_s)
        self._history_file = history if self._ranks.rank == 0 else None
        self._history = History(self._history_file)
        self._lifecycle = Lifecycle(self._storage, policy, self._history, metrics)
        self._stager = CheckpointStager(parts, self._ranks.rank, self._ranks.world_size)
        self._writer = Writer(self._storage, self._ranks)
        self._restorer = Restorer(
            folder, self._storage, self._ranks, parts, self._spec, self._data, accept_other_data
        )
        self._candidates = Candidates(policy.clean_steps)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._messages: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._saved: int | None = None
        self.requested = False
        """Whether a user asked for a checkpoint that has not been saved yet."""
        self.changed: list[str] = []
        """Fields of the spec that differ from those of the checkpoint from which the run continued."""
        if self._ranks.rank == 0:
            self._storage.sweep()

    def request(self) -> None:
        """Someone asked for a checkpoint: ``notify`` is called when the next one is on disk."""
        self.requested = True

    def save(self, step: int, *, closing: bool = False) -> None:
        """Copies the present state and writes it in the background. A failed write is reported, not raised.

        Args:
            step: optimizer steps applied.
            closing: the run ends here. Waits until all is written; what was saved since the last anomalous
                step is good, although no step will follow.
        """
        if self._writing is not None:
            self._writing.result()  # its copy is still being written, and the memory is used again
        if self._saved != step:
            self._stage(step, "good" if closing and self._candidates.is_trusted else "candidate")
        if self.requested and self._saved == step:
            self._later(self._report_requested, step)
        self.requested = False
        if closing:
            self._promote(self._candidates.flush())
            self.finish()
        self._emit_messages()

    def clean_step(self) -> None:
        """A step was applied, and the guard found nothing wrong with it."""
        self._promote(self._candidates.clean_step())
        self._emit_messages()

    def mark_suspect(self) -> None:
        """A step was anomalous: checkpoints that are not good yet may contain its cause and are deleted."""
        self._delete_suspect(self._candidates.mark_suspect())
        self._emit_messages()

    def discard_after(self, step: int) -> None:
        """The run has returned to the good state of ``step``: checkpoints of later ones are deleted."""
        self._delete_suspect(self._candidates.mark_suspect())
        self._candidates.reset()
        self._saved = None
        self._later(self._lifecycle.remove_after, step)

    def finish(self) -> None:
        """Waits until everything has been written."""
        self._thread.submit(lambda: None).result()
        self._emit_messages()

    def latest(self) -> str | None:
        """The newest good checkpoint, relative to the job's folder."""
        step = newest_step(self._storage)
        return None if step is None else checkpoint_name(self._folder, step)

    def load_latest(self) -> int | None:
        """Continues from the newest good checkpoint and returns its step; None where there is none.

        Damaged ones are reported and set aside, candidates are deleted.

        Raises:
            SpecError: the checkpoint was made with another model, optimizer or data set.
            JobError: the files of that data set have changed, or none of the checkpoints can be read.
        """
        loaded = self._load(None, keep=frozenset())
        if loaded is None:
            self._refuse_lost()
        self._later(self._lifecycle.remove_candidates)
        self.finish()
        if loaded is None:
            return None
        self.changed = loaded.changed
        return loaded.step

    def load_good(
        self, before: int | None = None, *, keep: Collection[str] = KEPT_ON_ROLLBACK
    ) -> Loaded | None:
        """Returns, within the run, to the newest good checkpoint. Workers are not restarted.

        Args:
            before: of this step or an earlier one.
            keep: parts that stay as they are; their saved states are returned.
        """
        self._delete_suspect(self._candidates.mark_suspect())
        loaded = self._load(before, keep=keep)
        if loaded is not None:
            self.discard_after(loaded.step)
        return loaded

    def restore(self, before: int | None = None) -> int | None:
        """``load_good`` in the form that a guard asks for: the step, None if there is none."""
        loaded = self.load_good(before)
        return None if loaded is None else loaded.step

    def _refuse_lost(self) -> None:
        """A job that had a good checkpoint does not begin again because that was removed or is elsewhere."""
        lost = None if self._history_file is None else last_good(self._history_file)
        # All-gather; every rank found no checkpoint, and rank 0 alone has the history.
        lost = self._ranks.from_first(lost)
        if lost is not None:
            raise JobError(
                f"the checkpoint of step {lost} is gone from {shown(self._folder)}: restore it, or start "
                "from the beginning with --overwrite"
            )

    def _load(self, before: int | None, *, keep: Collection[str]) -> Loaded | None:
        self.finish()
        loaded = self._restorer.load(before, keep=keep)
        if loaded is None:
            return None
        if loaded.warning and self._ranks.rank == 0:
            self._messages.put(("warning", loaded.warning))
        for name, problem in loaded.damaged.items() if self._ranks.rank == 0 else ():
            text = f"checkpoint {name} is damaged: {problem}; using the one before it"
            self._messages.put(("warning", text))
            self._later(self._lifecycle.set_aside, name)
        self._saved = loaded.step
        self._candidates.reset()
        self._emit_messages()
        return loaded

    def _stage(self, step: int, health: Health) -> None:
        started = time.perf_counter()
        try:
            staged = self._stager.take()
        except UnsupportedState as error:
            self._failed(step, error)
            return
        attempt, metrics = self._describe()
        header = CheckpointHeader(step, attempt, health, metrics, self._spec, self._data)
        if health == "candidate":
            self._candidates.saved(step)
        self._saved = step
        blocked_s = time.perf_counter() - started
        self._writing = self._thread.submit(self._write, header, staged, blocked_s)

    def _write(self, header: CheckpointHeader, staged: Staged, blocked_s: float) -> None:
        """Runs in the thread: the outcome is counted and reported, never raised."""
        started = time.perf_counter()
        try:
            manifest = self._writer.write(header, staged)
        except Exception as error:  # noqa: BLE001 - a checkpoint that fails does not end the training
            self._failed(header.step, error)
            return
        if manifest is not None:
            step, size, seconds = header.step, manifest.size, blocked_s + time.perf_counter() - started
            self._history.add("written", step, attempt=header.attempt, size=size)
            if self._metrics is not None:
                self._metrics.checkpoint_written(
                    step=step, seconds=seconds, blocked_seconds=blocked_s, size=size
                )
        if header.health == "good":
            self._lifecycle.record_good(header.step)

    def _failed(self, step: int, error: Exception) -> None:
        self._saved = None
        self._lifecycle.record_failed(step)
        self._messages.put(("warning", f"no checkpoint of step {step}: {reason(error)}; training continues"))

    def _report_requested(self, step: int) -> None:
        if checkpoint_folder(step) in self._storage.names():  # else the failure has been reported
            self._messages.put(("info", f"checkpoint of step {step} saved on request"))

    def _promote(self, steps: list[int]) -> None:
        for step in steps:
            self._later(self._lifecycle.promote, step)

    def _delete_suspect(self, steps: list[int]) -> None:
        if steps:
            self._saved = None
        for step in steps:
            self._later(self._lifecycle.remove_suspect, step)

    def _later(self, work: Callable[..., None], *arguments: Any) -> None:
        """Does rank 0's work on the storage in the thread, after all that was submitted before."""

        def guarded() -> None:
            try:
                work(*arguments)
            except Exception as error:  # noqa: BLE001 - see _write
                self._messages.put(("warning", f"checkpoints: {reason(error)}; training continues"))

        if self._ranks.rank == 0:
            self._thread.submit(guarded)

    def _emit_messages(self) -> None:
        while not self._messages.empty():
            self._notify(*self._messages.get())


Checkpoints = CheckpointManager
"""The name by which programs outside import it."""
