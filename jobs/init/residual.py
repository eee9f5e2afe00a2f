"""Where the residual branches of a model end: the layer whose output is added to the stream."""

from __future__ import annotations

from torch import nn

_ENDS = {
    "BasicBlock": ("bn2",),
    "Bottleneck": ("bn3",),
    "EncoderBlock": ("self_attention.out_proj", "mlp.3"),
}
"""For torchvision's blocks, by class name. Any other block names its own as ``residual_ends``."""


def residual_ends(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of the last layer of every residual branch, from the first block to the last.

    Your own block names them in an attribute ``residual_ends``: paths relative to the block, such as
    ``("attention.out", "mlp.out")``.
    """
    return [
        (f"{name}.{path}" if name else path, block.get_submodule(path))
        for name, block in model.named_modules()
        for path in getattr(block, "residual_ends", None) or _ENDS.get(type(block).__name__, ())
    ]
