"""Starts from weights of another training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from jobs.checkpoints.errors import DamagedCheckpoint
from jobs.checkpoints.load import newest_model, read
from jobs.data.errors import DataError
from jobs.run_dir.open_storage import open_storage
from jobs.run_dir.paths import CHECKPOINTS
from jobs.run_dir.storage import MANIFEST

log = logging.getLogger(__name__)

_SHOWN = 3


def load_weights(model: nn.Module, path: str | Path, *, strict: bool = True) -> list[str]:
    """Loads weights by their names, in place.

    Args:
        model: on the CPU.
        path: a ``.safetensors`` file, a folder of a Hugging Face model, a job's folder (its newest good
            checkpoint), or one of its checkpoints.
        strict: every tensor of the model must be there with its shape, and no other one. Else those that fit
            are loaded, and the others keep their initial values.

    Returns:
        The names of the model that were not loaded.

    Raises:
        DataError: the weights cannot be read, or do not fit.
    """
    found, own = read_weights(Path(path).expanduser()), model.state_dict()
    fits = {name: t for name, t in found.items() if name in own and own[name].shape == t.shape}
    frozen = {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    missing = [name for name in own if name not in fits and name not in frozen]
    extra = [name for name in found if name not in fits]
    if not fits or (strict and (missing or extra)):
        advice = "set model.weights_strict: false to load what fits" if fits else "no tensor of it fits"
        raise DataError(f"{path} does not fit the model: {_differences(own, found)}: {advice}")
    model.load_state_dict(fits, strict=False)
    if missing:
        log.warning(
            "weights: %d of %d tensors are not in %s: %s", len(missing), len(own), path, _some(missing)
        )
    return missing


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, a folder or a checkpoint, by name.

    Raises:
        DataError: there is none, or it cannot be read. No pickle is read.
    """
    try:
        if path.is_file():
            return load_file(path)
        if (path / MANIFEST).is_file():
            return _of_checkpoint(path.parent, path.name)
        if (path / CHECKPOINTS).is_dir():
            return _of_checkpoint(path / CHECKPOINTS)
        if files := sorted(path.glob("*.safetensors")):
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError, DamagedCheckpoint) as error:
        raise DataError(f"model.weights: {path} cannot be read: {error}") from None
    what = "has no .safetensors file and is no checkpoint" if path.exists() else "does not exist"
    raise DataError(f"model.weights: {path} {what}: give a .safetensors file, a model's folder or a job's")


def _of_checkpoint(place: Path, name: str | None = None) -> Mapping[str, Tensor]:
    storage = open_storage(place)
    if name is not None:
        return read(storage, name).model()
    found = newest_model(storage)
    if found is None:
        raise DataError(f"model.weights: {place} has no good checkpoint")
    return found[1]


def _differences(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    shapes = [
        f"{name} is {list(found[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in found and own[name].shape != found[name].shape
    ]
    parts = [
        ("", shapes),
        ("it lacks ", [name for name in own if name not in found]),
        ("it also has ", [name for name in found if name not in own]),
    ]
    return "; ".join(f"{what}{_some(names)}" for what, names in parts if names)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
