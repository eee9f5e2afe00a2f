"""Starts from weights of another training."""

from __future__ import annotations

import json
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
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_INDEX = ".safetensors.index.json"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


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
    own = model.state_dict()
    found = _unwrapped(read_weights(Path(path).expanduser()), own)
    fits = {
        name: t
        for name, t in found.items()
        if name in own and own[name].shape == t.shape and _same_kind(own[name], t)
    }
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


def _unwrapped(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without what DDP, ``torch.compile`` and Lightning put before all names, where no name fits with it."""
    while found and not found.keys() & own.keys():
        wrapper = next((w for w in _WRAPPERS if all(name.startswith(w) for name in found)), None)
        if wrapper is None:
            break
        found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    return found


def _same_kind(own: Tensor, found: Tensor) -> bool:
    """Quantized weights are whole numbers: as they are, they mean nothing to a model with fractions."""
    return own.is_floating_point() == found.is_floating_point()


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, a folder or a checkpoint, by name.

    Raises:
        DataError: there is none, or it cannot be read. No pickle is read.
    """
    if path.name.endswith(_INDEX):
        path = path.parent
    if path.suffix in _PICKLES and path.is_file():
        advice = "write its tensors with safetensors.torch.save_file"
        raise DataError(f"model.weights: {path} may be a pickle, which can run code: {advice}")
    try:
        if path.is_file():
            return load_file(path)
        if (path / MANIFEST).is_file():
            return _of_checkpoint(path.parent, path.name)
        if (path / CHECKPOINTS).is_dir():
            return _of_checkpoint(path / CHECKPOINTS)
        if files := _shards(path):
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except DataError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, DamagedCheckpoint) as error:
        raise DataError(f"model.weights: {path} cannot be read; is it complete? {error}") from None
    what = "has no .safetensors file and is no checkpoint" if path.exists() else "does not exist here"
    raise DataError(f"model.weights: {path} {what}: give a .safetensors file, a model's folder or a job's")


def _shards(folder: Path) -> list[Path]:
    """The files of a model that is stored in one or several.

    Raises:
        DataError: one that the index lists is not there.
    """
    for index in folder.glob(f"*{_INDEX}"):
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (folder / name).is_file():
                raise DataError(f"model.weights: {folder / name} is not there, and {index.name} lists it")
    return sorted(folder.glob("*.safetensors"))


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
    whole = [
        f"{name} is {found[name].dtype}".replace("torch.", "")
        for name in own
        if name in found and not _same_kind(own[name], found[name])
    ]
    parts = [
        ("", shapes),
        ("", whole),
        ("it lacks ", [name for name in own if name not in found]),
        ("it also has ", [name for name in found if name not in own]),
    ]
    return "; ".join(f"{what}{_some(names)}" for what, names in parts if names)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
