"""Checkpoints: what a run resumes from and rolls back to.

=================  ==========================================================================
``keeper``         ``Checkpoints``, what the training loop uses
``health``         candidate, then good after clean steps; suspect ones are deleted
``retention``      which good ones are kept
``manifest``       the description and the checksums of one checkpoint
``stage``          the copy for which the loop waits, this rank's share of it
``state``          state dicts as tensors and JSON, so that no pickle is needed
``write``          the background: torch.distributed.checkpoint, fsync, manifest, rename
``storage``        a local folder; ``remote``: S3 and any other URL
``load``           verify every byte, then read; ``spec_match``: does it belong to this spec?
``shards``         FSDP2: whole tensors become shards of any number of ranks
``folder``         what lies in a folder of checkpoints
=================  ==========================================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.checkpoints.errors import DamagedCheckpoint, UnsupportedState
    from jobs.checkpoints.folder import checkpoint_name, newest_step
    from jobs.checkpoints.keeper import Checkpoints, Loaded, Policy

_HOME = {
    "Checkpoints": "keeper",
    "DamagedCheckpoint": "errors",
    "Loaded": "keeper",
    "Policy": "keeper",
    "UnsupportedState": "errors",
    "checkpoint_name": "folder",
    "newest_step": "folder",
}

__all__ = [
    "Checkpoints",
    "DamagedCheckpoint",
    "Loaded",
    "Policy",
    "UnsupportedState",
    "checkpoint_name",
    "newest_step",
]


def __getattr__(name: str) -> Any:
    """Imports on first use: whoever only lists checkpoints does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'jobs.checkpoints' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jobs.checkpoints.{_HOME[name]}"), name)
