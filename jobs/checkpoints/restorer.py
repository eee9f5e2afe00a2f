"""Returns to a checkpoint: the newest good one that every rank can read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.act import rng
from guard.act.snapshot import Stateful
from jobs.checkpoints.data_match import INSIST, other_data
from jobs.checkpoints.errors import DamagedCheckpoint, reason
from jobs.checkpoints.listing import checkpoint_folder, manifests
from jobs.checkpoints.load import Content, check_parts, of_rank, read
from jobs.checkpoints.model_match import OtherModel, check_model
from jobs.checkpoints.ranks import Ranks
from jobs.checkpoints.shards import lay_out
from jobs.checkpoints.spec_match import changed_fields, check_spec
from jobs.errors import JobError
from jobs.run_dir.storage import Storage, shown

_CONTINUED = ("schedule", "cursor", "guard", "progress")
"""Without one of these a run would begin again in part, such as with its first batches."""
_OTHER_MODEL = "it has another model: "


@dataclass(frozen=True, slots=True)
class Loaded:
    """The outcome of loading a checkpoint.

    Attributes:
        step: of the checkpoint.
        kept: saved state dicts of the parts that stayed as they were, by name.
        changed: fields of the spec that differ from those of the checkpoint.
        damaged: newer checkpoints that could not be read, by folder name, and what is wrong with each.
        warning: that it was trained on other data, where that was accepted.
    """

    step: int
    kept: dict[str, Any]
    changed: list[str]
    damaged: dict[str, str]
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Restorer:
    """Loads checkpoints into the parts of a run.

    Attributes:
        folder: path or URL of the checkpoints, for messages.
        storage: of that folder.
        ranks: that load together.
        parts: what is loaded, by name, in this order.
        spec: of the job; a checkpoint of another one is refused.
        data: what identifies the job's data; a checkpoint of other data is refused, unless that is accepted.
        accept_other_data: see ``data``.
    """

    folder: str | Path
    storage: Storage
    ranks: Ranks
    parts: Mapping[str, Stateful]
    spec: Mapping[str, Any]
    data: Mapping[str, Any]
    accept_other_data: bool = False

    def load(self, before: int | None, *, keep: Collection[str]) -> Loaded | None:
        """Loads the newest good checkpoint up to step ``before``; None where there is none. Collective.

        All ranks try the same one; where any of them finds it damaged, all try the one before.

        Raises:
            JobError: there are good ones, and not one of them can be read; or the data are others.
            SpecError: it was made with another model, optimizer or data.
        """
        # All-gather; every rank loads at the same step, and the others wait while rank 0 lists the storage.
        steps, damaged = self.ranks.from_first(self._choices(before) if self.ranks.rank == 0 else None)
        problems: list[str] = []
        for step in steps:
            content, problem = self._read(step)
            # All-gather; every rank tries the same steps, and waits for the slowest reader.
            problems = [p for p in self.ranks.gather(problem) if p is not None]
            if content is not None and not problems:
                check_spec(content.manifest.spec, self.spec, step)
                warning = other_data(content.manifest.data, self.data, step)
                if warning and not self.accept_other_data:
                    raise JobError(f"{warning}; {INSIST}")
                kept, problem = self._apply(content, keep)
                # All-gather: where a part of any rank refuses its state, all go on to the one before.
                problems = [p for p in self.ranks.gather(problem) if p is not None]
                if not problems:
                    changed = changed_fields(content.manifest.spec, self.spec)
                    return Loaded(step, kept, changed + ["data"] * bool(warning), damaged, warning)
            damaged[checkpoint_folder(step)] = problems[0]
        if damaged and all(problem.startswith(_OTHER_MODEL) for problem in damaged.values()):
            raise JobError(
                f"the model changed since the checkpoint of step {steps[0]}: "
                f"{problems[0].removeprefix(_OTHER_MODEL)}: bring the old model back, or start from the "
                "beginning with --overwrite"
            )
        if damaged:
            listed = "; ".join(f"{name}: {problem}" if name else problem for name, problem in damaged.items())
            raise JobError(
                f"no checkpoint under {shown(self.folder)} can be read ({listed}): restore one, "
                "or start from the beginning with --overwrite"
            )
        return None

    def _choices(self, before: int | None) -> tuple[list[int], dict[str, str]]:
        """The steps of the good ones, newest first, and the problems of those without a readable manifest."""
        try:
            readable, damaged = manifests(self.storage)
        except Exception as error:  # noqa: BLE001 - the other ranks wait for an answer
            return [], {"": reason(error)}
        good = [m.step for m in reversed(readable) if m.health == "good"]
        return [step for step in good if before is None or step <= before], damaged

    def _read(self, step: int) -> tuple[Content | None, str | None]:
        rank = self.ranks.rank
        try:
            content = read(self.storage, checkpoint_folder(step), wanted=of_rank(rank))
            states = content.parts(rank, self.ranks.world_size)
            check_parts(states)
            if missing := [name for name in _CONTINUED if name in self.parts and name not in states]:
                return None, f"it has no part {', '.join(missing)}"
        except DamagedCheckpoint as error:
            return None, str(error)
        except Exception as error:  # noqa: BLE001 - an unforeseen error must not leave the others waiting
            return None, reason(error)
        return content, None

    def _apply(self, content: Content, keep: Collection[str]) -> tuple[dict[str, Any], str | None]:
        """The states of the parts that stay as they were; and what is wrong where a part refuses its own."""
        rank, world_size = self.ranks.rank, self.ranks.world_size
        states = content.parts(rank, world_size)
        try:
            generators = content.generators(rank, world_size)
            if generators is not None:
                rng.restore(generators)  # before the guard, whose first snapshot contains them
            for name, part in self.parts.items():
                if name not in keep and name in states:
                    if name == "model":
                        check_model(states[name], part)
                    part.load_state_dict(lay_out(states[name], part))
        except OtherModel as error:
            return {}, f"{_OTHER_MODEL}{error}"
        except Exception as error:  # noqa: BLE001 - parts raise anything, and the other ranks wait
            return {}, reason(error)
        return {name: states[name] for name in keep if name in states}, None
