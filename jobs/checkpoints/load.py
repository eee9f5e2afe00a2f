"""Reads a checkpoint after verifying every byte of it. No pickle is read anywhere."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, empty

from jobs.checkpoints.errors import DamagedCheckpoint
from jobs.checkpoints.listing import checkpoint_folder, manifests, read_manifest
from jobs.checkpoints.manifest import STATE, Manifest, digest_of
from jobs.checkpoints.stager import generators_name
from jobs.checkpoints.state import Tensors, put_together
from jobs.run_dir.storage import MANIFEST, Storage, step_of
from jobs.run_dir.strays import hidden

_log = logging.getLogger(__name__)

NEEDED = ("model", "optimizer")
"""The parts without which a resume would start from nothing."""


class Content:
    """A verified checkpoint in memory.

    Attributes:
        manifest: its description.
        tensors: all tensors by name, on the CPU.
        state: state.json.
    """

    def __init__(self, manifest: Manifest, tensors: Tensors, state: dict[str, Any]) -> None:
        self.manifest, self.tensors, self.state = manifest, tensors, state

    def parts(self, rank: int, world_size: int) -> dict[str, Any]:
        """The state dicts by part. In a world of another size every rank gets rank 0's view."""
        trees = dict(self.state["parts"])
        if world_size == self.manifest.world_size:
            trees.update(self.state["ranks"][rank]["own"])
        return {name: put_together(tree, self.tensors) for name, tree in trees.items()}

    def model(self) -> dict[str, Tensor]:
        """The parameters and buffers of the trained model, by name.

        Raises:
            DamagedCheckpoint: they are not there, or not finite.
        """
        states = self.parts(0, self.manifest.world_size)
        check_parts(states, needed=("model",))
        return {name: value for name, value in states["model"].items() if isinstance(value, Tensor)}

    def generators(self, rank: int, world_size: int) -> dict[str, Any] | None:
        """The state of a rank's random number generators; None in a world of another size."""
        if world_size != self.manifest.world_size:
            return None
        return put_together(self.state["ranks"][rank]["generators"], self.tensors)


def read(storage: Storage, name: str, *, wanted: Callable[[str], bool] = lambda _: True) -> Content:
    """Verifies a whole checkpoint and reads it.

    Args:
        storage: where it is stored.
        name: ``step-NNNNNNNN``.
        wanted: which tensors to read, by name.

    Raises:
        DamagedCheckpoint: with the file that is damaged, and how.
    """
    manifest = read_manifest(storage, name)
    with tempfile.TemporaryDirectory(prefix="gradguard-") as scratch:
        try:
            folder = storage.local_copy(name, Path(scratch))
            found = storage.files(name)
            _verify(folder, manifest, found)
            state = _read_state(folder, manifest)
            alone = folder if found.keys() == manifest.files.keys() else _links(folder, manifest, scratch)
            tensors = _read_tensors(alone, wanted)
        except OSError as error:
            raise DamagedCheckpoint(f"cannot be read: {error.strerror or error}") from None
    return Content(manifest, tensors, state)


def newest_model(storage: Storage) -> tuple[Manifest, dict[str, Tensor]] | None:
    """The weights of the newest good checkpoint that is whole; None where none is good.

    A warning names the newer ones that are damaged, and the one that is used instead.

    Raises:
        DamagedCheckpoint: every good one is damaged; each is named.
    """
    readable, damaged = manifests(storage)
    good = [manifest for manifest in reversed(readable) if manifest.health == "good"]
    for manifest in good:
        name = checkpoint_folder(manifest.step)
        try:
            weights = read(storage, name).model()
        except DamagedCheckpoint as error:
            damaged[name] = str(error)
            continue
        if newer := [other for other in damaged if step_of(other) > manifest.step]:
            problems = "; ".join(f"{other}: {damaged[other]}" for other in sorted(newer))
            _log.warning("checkpoints: %s is used, since a newer one is damaged (%s)", name, problems)
        return manifest, weights
    if good:
        raise DamagedCheckpoint("; ".join(f"{name}: {problem}" for name, problem in sorted(damaged.items())))
    return None


def verify(storage: Storage, name: str) -> Manifest:
    """Loads all that a resume with any rank needs, and keeps none.

    Raises:
        DamagedCheckpoint: as ``read``, or a part is not there as a whole, or a weight is NaN.
    """
    content = read(storage, name)
    world_size = content.manifest.world_size
    for rank in range(world_size):
        check_parts(content.parts(rank, world_size))
        content.generators(rank, world_size)
    return content.manifest


def check_parts(parts: Mapping[str, Any], needed: Sequence[str] = NEEDED) -> None:
    """Raises ``DamagedCheckpoint`` where a resume would go on with fresh or broken weights."""
    for name in needed:
        if not isinstance(parts.get(name), Mapping) or not parts[name]:
            raise DamagedCheckpoint(f"{STATE} has no part {name}")
    if not any(isinstance(value, Tensor) for value in parts["model"].values()):
        raise DamagedCheckpoint(f"the part model of {STATE} has no tensors")
    for name, value in parts["model"].items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if bool(value.isnan().any()):
            raise DamagedCheckpoint(f"the weight {name} has NaN in it")
        if name.endswith("weight") and bool(value.isinf().any()):  # a buffer, such as a mask, may be infinite
            raise DamagedCheckpoint(f"the weight {name} has infinity in it")


def of_rank(rank: int) -> Callable[[str], bool]:
    """Which tensors a rank needs: all but the other ranks' generators."""
    mine = generators_name(rank) + "."
    return lambda name: not name.startswith("generators.") or name.startswith(mine)


def _read_state(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """``state.json``: all of its fields are there."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        dict(state["parts"])
        ranks = [(rank["own"], rank["generators"]) for rank in state["ranks"]]
    except KeyError as error:
        raise DamagedCheckpoint(f"{STATE} has no {error.args[0]}") from None
    except (ValueError, TypeError, RecursionError):
        raise DamagedCheckpoint(f"{STATE} cannot be read") from None
    if missing := sorted(set(manifest.parts) - set(state["parts"])):
        raise DamagedCheckpoint(f"{STATE} has no part {', '.join(missing)}")
    if len(ranks) != manifest.world_size:
        raise DamagedCheckpoint(f"{MANIFEST} has {manifest.world_size} ranks, {STATE} has {len(ranks)}")
    return state


def _verify(folder: Path, manifest: Manifest, found: dict[str, int]) -> None:
    for extra in sorted(found.keys() - manifest.files.keys()):
        if not hidden(extra):  # by a file browser, NFS, or a promotion that was killed
            raise DamagedCheckpoint(f"{extra} does not belong to it")
    for name, record in manifest.files.items():
        if name not in found:
            raise DamagedCheckpoint(f"{name} is missing")
        if found[name] != record.size:
            raise DamagedCheckpoint(f"{name} has {found[name]} bytes instead of {record.size}")
        with (folder / name).open("rb") as file:
            if digest_of(file) != record:
                raise DamagedCheckpoint(f"{name} does not match its checksum")


def _links(folder: Path, manifest: Manifest, scratch: str) -> Path:
    """A folder with the files of the checkpoint alone: torch reads whatever ends in ``.safetensors``."""
    alone = Path(scratch, "alone")
    alone.mkdir()
    for name in manifest.files:
        (alone / name).symlink_to((folder / name).absolute())
    return alone


def _read_tensors(folder: Path, wanted: Callable[[str], bool]) -> Tensors:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    from jobs.checkpoints.dcp_single_process import load_local

    reader = HuggingFaceStorageReader(path=str(folder))
    described: Iterable[tuple[str, Any]] = reader.read_metadata().state_dict_metadata.items()
    tensors: dict[str, Tensor] = {
        name: empty(about.size, dtype=about.properties.dtype) for name, about in described if wanted(name)
    }
    if tensors:
        load_local(tensors, reader)
    return tensors
