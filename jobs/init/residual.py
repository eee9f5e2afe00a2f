"""Where the residual branches of a model end: the layer whose output is added to the stream."""

from __future__ import annotations

from torch import Tensor, nn

_ENDS = {
    "BasicBlock": ("bn2",),
    "Bottleneck": ("bn3",),
    "EncoderBlock": ("self_attention.out_proj", "mlp.3"),
}
"""For torchvision's blocks, by class name. Any other block names its own as ``residual_ends``."""


def residual_ends(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of the last layer of every residual branch, from the first block to the last.

    A block of one's own names them in an attribute ``residual_ends``: paths relative to the block, such as
    ``("attention.out", "mlp.out")``.
    """
    found = []
    for name, block in model.named_modules():
        for path in getattr(block, "residual_ends", None) or _ENDS.get(type(block).__name__, ()):
            found.append((f"{name}.{path}" if name else path, block.get_submodule(path)))
    return found


def zero_(end: nn.Module) -> None:
    """Makes a layer return zeros for any input: the block starts as the identity."""
    for tensor in _own(end):
        tensor.zero_()


def scale_(end: nn.Module, factor: float) -> None:
    """Multiplies what a layer gives."""
    for tensor in _own(end):
        tensor.mul_(factor)


def _own(end: nn.Module) -> list[Tensor]:
    return [parameter.data for parameter in end.parameters(recurse=False)]
