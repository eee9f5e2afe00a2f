"""A checkpoint's model as one file that can be read without GradGuard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from jobs.checkpoints.load import Content
from jobs.checkpoints.manifest import Manifest
from jobs.errors import JobError

SUFFIXES = (".safetensors", ".pt", ".pth")
ABOUT = "gradguard"
"""The field of a safetensors file's metadata with the model's section of the spec, its sizes and classes."""


def export_model(content: Content, target: Path) -> int:
    """Writes the model's parameters and buffers under their own names, and replaces ``target`` atomically.

    ``jobs.load_model`` builds the model of a safetensors file again.

    Args:
        content: a verified checkpoint.
        target: ``.safetensors``, or ``.pt`` or ``.pth`` for a state dict that
            ``torch.load(..., weights_only=True)`` reads.

    Returns:
        The number of tensors.

    Raises:
        JobError: another suffix, or a file that cannot be written.
        DamagedCheckpoint: see ``Content.model``.
    """
    if target.suffix not in SUFFIXES:
        raise JobError(f"cannot export to {target}: end its name with {', '.join(SUFFIXES)} or .onnx")
    weights = {name: tensor.contiguous() for name, tensor in content.model().items()}
    if not target.parent.is_dir():
        raise JobError(f"cannot write {target}: there is no folder {target.parent}")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        if target.suffix == ".safetensors":
            save_file(weights, temporary, metadata=_metadata(content.manifest))
        else:
            with temporary.open("wb") as file:  # given a name, torch hides why it cannot write
                torch.save(weights, file)
        temporary.replace(target)
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        why = cause.strerror if isinstance(cause, OSError) else None
        raise JobError(f"cannot write {target}: {why or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return len(weights)


def _metadata(manifest: Manifest) -> dict[str, str]:
    """``format`` is what other libraries look for; the rest is how to build the model again."""
    about = about_model(manifest)
    name = {"model": str(about["model"]["name"])} if "name" in about["model"] else {}
    return {"format": "pt", "step": str(manifest.step), **name, ABOUT: json.dumps(about)}


def about_model(manifest: Manifest) -> dict[str, Any]:
    """How to build the model of a checkpoint again."""
    return {
        "workload": manifest.spec.get("workload"),
        "model": manifest.spec.get("model") or {},
        "sizes": manifest.data.get("model"),
        "classes": manifest.data.get("classes"),
        "normalization": manifest.data.get("normalization"),
    }
