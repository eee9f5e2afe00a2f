"""The repeated parts of a model: what is gathered, freed and computed again as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from jobs.workloads.errors import WorkloadError


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The children of the outermost lists (``ModuleList``, ``Sequential``) that repeat one class.

    Raises:
        WorkloadError: there are none.
    """
    found = list(_repeated(model))
    if not found:
        raise WorkloadError(
            f"parallel: {type(model).__name__} has no blocks, which are two or more modules of one class in "
            "a ModuleList or Sequential: write kind: ddp and activation_checkpointing: none"
        )
    return found


def _repeated(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    if isinstance(module, nn.ModuleList | nn.Sequential) and len(children) > 1:
        kinds = {type(child) for child in children}
        composed = all(any(True for _ in child.children()) for child in children)
        if len(kinds) == 1 and composed and kinds != {nn.Sequential}:
            yield from (child for child in children if any(True for _ in child.parameters()))
            return
    for child in children:
        yield from _repeated(child)
