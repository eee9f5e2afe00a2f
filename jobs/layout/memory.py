"""What a job needs of each GPU's memory: an estimate from its spec and the sizes of its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.spec.job_spec import JobSpec
from jobs.spec.language import LANGUAGE, GptShape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

MOST_WEIGHTS = 1 << 30
"""Above that, the whole model is not built on one worker for the pre-flight."""
_WORD, _HALF = 4, 2
_GIB = 1 << 30
_MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2, "muon": 2}
"""Tensors of the size of the weights that an optimizer keeps."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one GPU.

    Attributes:
        weights: this rank's float32 part, and the whole of the blocks that are gathered at a time.
        gradients: likewise.
        moments: of the optimizer.
        activations: of one micro-batch; None where the model is no gpt.
        snapshots: of the guard: weights and moments, as often as it keeps them.
    """

    weights: int
    gradients: int
    moments: int
    activations: int | None
    snapshots: int

    @property
    def total(self) -> int:
        """All of it."""
        known = (self.weights, self.gradients, self.moments, self.activations or 0, self.snapshots)
        return sum(known)

    def line(self, gpus: Sequence[int]) -> str:
        """The estimate, beside the memory of each GPU that is there, in bytes."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "moments": self.moments,
            "activations": self.activations,
            "snapshots": self.snapshots,
        }
        listed = ", ".join(f"{name} {_gib(value)}" for name, value in parts.items() if value)
        unknown = "" if self.activations is not None else ", without activations"
        return f"memory of each worker: {_gib(self.total)} ({listed}{unknown}); {self._against(gpus)}"

    def fits(self, gpus: Sequence[int]) -> bool:
        """Whether the smallest GPU has room; true where there is none."""
        return not gpus or self.total <= min(gpus)

    def _against(self, gpus: Sequence[int]) -> str:
        if not gpus:
            return "no GPU is here to compare with"
        smallest = min(gpus)
        verdict = "it fits" if self.fits(gpus) else "it does not fit: more workers, or see `parallel`"
        return f"{len(gpus)} GPU{'s' * (len(gpus) > 1)} of {_gib(smallest)}: {verdict}"


def estimate(spec: JobSpec, blocks: Sequence[int], rest: int) -> MemoryEstimate:
    """The memory of each worker of ``scale.workers``.

    Args:
        spec: of the job.
        blocks: weights of each block of the model; empty where it has none.
        rest: weights outside of the blocks.
    """
    parallel, workers = spec.parallel, spec.scale.workers
    whole = sum(blocks) + rest
    ranks = parallel.shards(workers) * parallel.tensor
    own = -(-whole // ranks)
    on_gpu = 0 if parallel.cpu_offload else own
    half = spec.train.precision != "fp32"
    word = _HALF if half else _WORD
    reduced = max([*blocks, rest]) // parallel.tensor * word if parallel.sharded else 0
    gathered = _gathered(spec, blocks, rest) * word if parallel.sharded else (whole * word if half else 0)
    snapshot = spec.guard.snapshot
    kept = snapshot.keep if snapshot.place == "device" and spec.guard.mode not in ("off", "shadow") else 0
    moments = _MOMENTS.get(spec.optimizer.name, 2)
    return MemoryEstimate(
        weights=on_gpu * _WORD + gathered,
        gradients=on_gpu * _WORD + reduced,
        moments=on_gpu * _WORD * moments,
        activations=_activations(spec),
        snapshots=on_gpu * _WORD * (1 + moments) * kept,
    )


def _gathered(spec: JobSpec, blocks: Sequence[int], rest: int) -> int:
    """Whole weights at one time: what is outside of the blocks, and one block and the next, or all."""
    if not spec.parallel.reshard_after_forward:
        return (sum(blocks) + rest) // spec.parallel.tensor
    return (rest + 2 * max(blocks, default=0)) // spec.parallel.tensor


def _activations(spec: JobSpec) -> int | None:
    """Of a gpt with attention that keeps no scores.

    Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022), section 4,
    without its softmax: about 34 bytes a token, block and width in half precision, for a hidden layer of four
    widths; SwiGLU's three matrices keep as much.
    """
    if spec.workload != LANGUAGE:
        return None
    shape = spec.model.gpt_shape(tokens=256)
    share = spec.data.batch_size // spec.parallel.data_parallel(spec.scale.workers)
    tokens = -(-share // spec.train.micro_batches) * shape.context
    word = _WORD if spec.train.precision == "fp32" else _HALF
    each = tokens * shape.width * word
    one_block = 17 * each // spec.parallel.tensor
    inputs = each // spec.parallel.tensor
    how = spec.parallel.activation_checkpointing
    per_block = {"none": one_block, "selective": one_block // 2, "block": inputs}[how]
    again = 0 if how == "none" else one_block
    logits = 3 * tokens * shape.vocabulary * _WORD  # in float32, their exponentials, and their gradient
    return per_block * shape.layers + again + logits


def of_spec(spec: JobSpec) -> MemoryEstimate | None:
    """The estimate of a gpt, whose sizes are in its spec; None for any other model."""
    if spec.workload != LANGUAGE:
        return None
    return estimate(spec, *gpt_sizes(spec.model.gpt_shape(tokens=256)))


def sizes_of(model: nn.Module) -> tuple[list[int], int]:
    """Weights of each block of a model, and of all else."""
    from jobs.layout.blocks import blocks_of
    from jobs.workloads.errors import WorkloadError

    try:
        blocks = [sum(p.numel() for p in block.parameters()) for block in blocks_of(model)]
    except WorkloadError:
        blocks = []
    return blocks, sum(p.numel() for p in model.parameters()) - sum(blocks)


def gpt_sizes(shape: GptShape) -> tuple[list[int], int]:
    """The same of a gpt, without building it."""
    matrices = 3 if shape.mlp == "swiglu" else 2
    heads = 2 * shape.width // shape.heads if shape.qk_norm else 0
    block = 4 * shape.width**2 + matrices * shape.width * shape.hidden + 2 * shape.width + heads
    return [block] * shape.layers, shape.vocabulary * shape.width + shape.width


def too_large(spec: JobSpec) -> bool:
    """Whether the whole model is not built on one worker, as for the pre-flight."""
    return spec.workload == LANGUAGE and sum_of(gpt_sizes(spec.model.gpt_shape(tokens=256))) > MOST_WEIGHTS


def sum_of(sizes: tuple[Sequence[int], int]) -> int:
    """All weights."""
    return sum(sizes[0]) + sizes[1]


def gpus_here() -> list[int]:
    """The memory of each GPU of this machine, in bytes."""
    import torch  # takes seconds, and an estimate does not need it

    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return [torch.cuda.get_device_properties(device).total_memory for device in devices]


def _gib(size: int | None) -> str:
    return f"{(size or 0) / _GIB:.1f} GiB"
