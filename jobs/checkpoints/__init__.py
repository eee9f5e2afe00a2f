"""Checkpoints: what a run resumes from and rolls back to.

=================  ==========================================================================
``manager``        ``CheckpointManager``, what the training loop uses
``restorer``       loading: the newest good one that every rank can read
``lifecycle``      promoting, retiring and deleting what was written; which good ones are kept
``health``         candidate, then good after clean steps; suspect ones are deleted
``manifest``       the description and the checksums of one checkpoint
``stager``         the copy for which the loop waits, this rank's part of the state
``state``          state dicts as tensors and JSON, so that no pickle is needed
``writer``         the background: torch.distributed.checkpoint, fsync, manifest, rename
``load``           verify every byte, then read
``spec_match``     does it belong to this spec? ``data_match``: to these data? ``model_match``: to this model?
``shards``         FSDP2: whole tensors become shards of any number of ranks
``listing``        what is stored in a folder of checkpoints
``history``        a row in ``checkpoints.jsonl`` for each that is written, becomes good, or goes
``compare``        which tensors of two differ, and by how much
``export``         the model alone, as one file
``ranks``          how the ranks agree, over a gloo group of their own
``dcp_single_process``  torch.distributed.checkpoint without a process group
``errors``         what can be wrong with one
=================  ==========================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from jobs.checkpoints.errors import DamagedCheckpoint as DamagedCheckpoint
    from jobs.checkpoints.errors import UnsupportedState as UnsupportedState
    from jobs.checkpoints.lifecycle import Policy as Policy
    from jobs.checkpoints.listing import checkpoint_name as checkpoint_name
    from jobs.checkpoints.listing import newest_step as newest_step
    from jobs.checkpoints.manager import CheckpointManager as CheckpointManager
    from jobs.checkpoints.manager import Checkpoints as Checkpoints
    from jobs.checkpoints.restorer import Loaded as Loaded

_HOME = {
    "CheckpointManager": "manager",
    "Checkpoints": "manager",
    "DamagedCheckpoint": "errors",
    "Loaded": "restorer",
    "Policy": "lifecycle",
    "UnsupportedState": "errors",
    "checkpoint_name": "listing",
    "newest_step": "listing",
}

__all__ = list(_HOME)

__getattr__ = lazy(__name__, _HOME)
