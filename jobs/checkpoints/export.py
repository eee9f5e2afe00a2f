"""A checkpoint's model as one file that can be read without GradGuard."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from jobs.checkpoints.load import Content
from jobs.errors import JobError

SUFFIXES = (".safetensors", ".pt", ".pth")
_MODEL = "model."


def export_model(content: Content, target: Path) -> int:
    """Writes the model's parameters and buffers under their own names, and replaces ``target`` atomically.

    Args:
        content: a verified checkpoint.
        target: ``.safetensors``, or ``.pt`` or ``.pth`` for a state dict that
            ``torch.load(..., weights_only=True)`` reads.

    Returns:
        The number of tensors.

    Raises:
        JobError: another suffix, a checkpoint without a model, or a file that cannot be written.
    """
    if target.suffix not in SUFFIXES:
        raise JobError(f"cannot export to {target}: end its name with {', '.join(SUFFIXES[:-1])} or .pth")
    weights = {k.removeprefix(_MODEL): t for k, t in content.tensors.items() if k.startswith(_MODEL)}
    if not weights:
        raise JobError(f"the checkpoint of step {content.manifest.step} contains no model")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        if target.suffix == ".safetensors":
            save_file(weights, temporary, metadata={"format": "pt", "step": str(content.manifest.step)})
        else:
            torch.save(weights, temporary)
        temporary.replace(target)
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise JobError(f"cannot write {target}: {why or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return len(weights)
