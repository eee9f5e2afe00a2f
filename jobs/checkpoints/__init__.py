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

from jobs.checkpoints.errors import DamagedCheckpoint, UnsupportedState
from jobs.checkpoints.folder import checkpoint_name, newest_step
from jobs.checkpoints.keeper import Checkpoints, Loaded, Policy

__all__ = [
    "Checkpoints",
    "DamagedCheckpoint",
    "Loaded",
    "Policy",
    "UnsupportedState",
    "checkpoint_name",
    "newest_step",
]
