"""The layout of a job: how weights, gradients and moments are divided over the workers."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from guard.config import Config


class ParallelSpec(Config):
    """How the model is divided over the workers. A checkpoint continues under any other layout."""

    kind: Literal["ddp", "fsdp2", "hsdp"] = "ddp"
    """``ddp``: each worker has the whole model. ``fsdp2``: weights, gradients and moments are divided over
    all workers, block by block (``fully_shard``). ``hsdp``: they are divided within groups of ``shard``
    workers, and each group is a replica."""

    shard: PositiveInt | None = None
    """Data-parallel workers that share one replica of an hsdp job: those of a node, for fast links. Default:
    half of them."""

    tensor: PositiveInt = 1
    """Workers that divide each matrix of a gpt among them, and the sequence between the matrices (tensor and
    sequence parallel); they compute the same samples."""

    activation_checkpointing: Literal["none", "block", "selective"] = "none"
    """Saves memory by computing activations again in the backward pass. ``block``: all but the inputs of the
    blocks. ``selective``: all but the results of every other matrix product and of attention."""

    reshard_after_forward: bool = True
    """Whether a block's whole weights are freed between its forward and its backward pass, which gathers
    them again. ``false``: faster, and more memory."""

    cpu_offload: bool = False
    """Keeps weights, gradients and moments in main memory; the optimizer steps on the CPU."""

    @property
    def sharded(self) -> bool:
        """Whether a worker has less than the whole model, or shares its samples with another."""
        return self.kind != "ddp" or self.tensor > 1

    def data_parallel(self, workers: int) -> int:
        """Workers with different samples."""
        return workers // self.tensor

    def shards(self, workers: int) -> int:
        """Data-parallel workers over which one replica is divided."""
        ranks = self.data_parallel(workers)
        return {"ddp": 1, "fsdp2": ranks, "hsdp": self.shard or max(1, ranks // 2)}[self.kind]

    def replicas(self, workers: int) -> int:
        """Copies of the model; each is divided over ``shards * tensor`` workers."""
        return self.data_parallel(workers) // self.shards(workers)
